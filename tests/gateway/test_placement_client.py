"""Who is asked where to start a function, and for how long."""

from __future__ import annotations

import asyncio
import time

import pytest
from aiohttp import web

from stoker.gateway.internal import open_session
from stoker.gateway.placement_client import PlacementClient
from stoker.placement.errors import CoordinationLost, NoCapacity, StokerError, Unavailable
from stoker.placement.records import (
    FunctionDemand,
    LeaderRecord,
    PlaceAnswer,
    encode,
)
from stoker.placement.service import error_response


class Placement:
    """Answers each question with the next of `answers`; the last one stays. May hang at first."""

    def __init__(self, *answers: StokerError | PlaceAnswer, hangs: bool = False) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.hangs = hangs

    async def answer(self, _: web.Request) -> web.Response:
        self.asked += 1
        if self.hangs and self.asked == 1:
            await asyncio.sleep(60)
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(found, StokerError):
            response = error_response(found)
            return web.Response(status=response.status_code, body=bytes(response.body))
        return web.Response(body=encode(found))

    async def place(self, *, connected: bool, leader: bool = True) -> PlaceAnswer:
        app = web.Application()
        app.router.add_post("/place", self.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        address = "{}:{}".format(*runner.addresses[0][:2])
        session = open_session()
        record = LeaderRecord("me", address, 1) if leader else None
        client = PlacementClient(session, lambda: record, lambda: connected, "g", "token")
        demand = FunctionDemand(0, 1, 0.0)
        asking = asyncio.ensure_future(client.place("f.ns", lambda: demand, lambda: ("call",)))
        try:
            if self.hangs:
                while not self.asked:
                    await asyncio.sleep(0.01)
                known, record = record, None
                client.follow()
                await asyncio.sleep(0.1)
                record = known
            return await asking
        finally:
            await session.close()
            await runner.cleanup()


NOBODY_DECIDES = (Unavailable("No placement leads."), CoordinationLost("The store is away."))


@pytest.mark.parametrize("undecided", NOBODY_DECIDES)
def test_who_hears_that_nobody_decides_asks_again(undecided: StokerError) -> None:
    placement = Placement(undecided, undecided, PlaceAnswer(()))
    assert asyncio.run(placement.place(connected=True)) == PlaceAnswer(())
    assert placement.asked == 3


@pytest.mark.parametrize("undecided", NOBODY_DECIDES)
def test_without_the_store_nobody_waits_for_a_decision(undecided: StokerError) -> None:
    placement = Placement(undecided)
    begun_at = time.monotonic()
    with pytest.raises(CoordinationLost, match="out of reach"):
        asyncio.run(placement.place(connected=False))
    assert (placement.asked, time.monotonic() - begun_at < 1) == (1, True)


def test_without_the_store_a_leader_that_decides_is_heard() -> None:
    assert asyncio.run(Placement(PlaceAnswer(())).place(connected=False)) == PlaceAnswer(())
    with pytest.raises(NoCapacity):
        asyncio.run(Placement(NoCapacity("No room.")).place(connected=False))


def test_without_the_store_and_a_leader_the_refusal_comes_at_once() -> None:
    with pytest.raises(CoordinationLost):
        asyncio.run(Placement(PlaceAnswer(())).place(connected=False, leader=False))


def test_a_leader_that_hangs_is_not_waited_for_once_it_leads_no_more() -> None:
    placement = Placement(PlaceAnswer(()), hangs=True)
    answer = asyncio.run(asyncio.wait_for(placement.place(connected=True), 5))
    assert (answer, placement.asked) == (PlaceAnswer(()), 2)
