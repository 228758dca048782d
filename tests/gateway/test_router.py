"""The router's decisions, without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from stoker.gateway.router import ASK_AGAIN_SECONDS, Router
from stoker.gateway.targets import Target, choose, targets
from stoker.placement.errors import (
    CoordinationLost,
    CrashLoop,
    NoCapacity,
    StokerError,
    Unavailable,
)
from stoker.placement.records import (
    Assignment,
    FunctionDemand,
    FunctionRecord,
    InstanceRecord,
    InstanceState,
    PlaceAnswer,
    Scaling,
)
from stoker.placement.view import Snapshot

FUNCTION = FunctionRecord("f", "openfaas-fn", "x", scaling=Scaling(concurrency=1))


def assignment(identity: str, generation: int = 1) -> Assignment:
    return Assignment(identity, FUNCTION.key, generation, "n", f"{identity}:1", 1, 0.0)


def instance(identity: str, state: InstanceState) -> InstanceRecord:
    return InstanceRecord(identity, FUNCTION.key, 1, "n", f"{identity}:1", state, 1, 0.0)


def snapshot(*instances: InstanceRecord, assigned: tuple[str, ...] = ()) -> Snapshot:
    return Snapshot(
        functions={FUNCTION.key: FUNCTION},
        instances={i.instance_id: i for i in instances},
        assignments={i: assignment(i) for i in assigned},
    )


class FakePlacer:
    """Answers with what the test sets; an exception is raised."""

    def __init__(self) -> None:
        self.answer: PlaceAnswer | Exception = PlaceAnswer(())
        self.asked = 0

    async def place(
        self,
        function_key: str,
        demand: Callable[[], FunctionDemand],
        call_ids: Callable[[], tuple[str, ...]],
    ) -> PlaceAnswer:
        self.asked += 1
        self.call_ids = call_ids()
        await asyncio.sleep(0)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class World:
    def __init__(self, present: Snapshot, queue_seconds: float = 5.0) -> None:
        self.now = 100.0
        self.present = present
        self.placer = FakePlacer()
        self.router = Router(
            lambda: self.present, self.placer, queue_seconds, clock=lambda: self.now
        )


def test_serving_goes_before_starting_new_before_old_and_then_the_least_busy() -> None:
    a, b = Target("a", "", 1, serving=True), Target("b", "", 1, serving=True)
    new, starting = Target("c", "", 2, serving=True), Target("d", "", 2, serving=False)
    assert choose([starting, a, b, new], {"c": 3}, 4) == new
    assert choose([starting, a, b, new], {"c": 4, "a": 1}, 4) == b
    assert choose([starting, a, b, new], {"a": 4, "b": 4, "c": 4}, 4) == starting
    assert choose([a], {"a": 4}, 4) is None
    assert choose([], {}, 4) is None


def test_only_what_is_assigned_and_not_ending_is_a_target() -> None:
    present = snapshot(
        instance("serving", "serving"),
        instance("failed", "failed"),
        instance("stopping", "stopping"),
        instance("unassigned", "serving"),
        assigned=("serving", "failed", "stopping", "unknown-yet"),
    )
    found = targets(present, FUNCTION.key, [assignment("just-told")])
    assert {t.instance_id: t.serving for t in found.values()} == {
        "serving": True,
        "unknown-yet": False,
        "just-told": False,
    }


def test_placement_is_told_which_instances_have_requests() -> None:
    async def run() -> None:
        serving = [instance(name, "serving") for name in ("a", "b")]
        world = World(snapshot(*serving, assigned=("a", "b")))
        held = await world.router.acquire(FUNCTION)
        assert world.router.demand()[FUNCTION.key].working == (held.target.instance_id,)
        world.router.release(held)
        assert world.router.demand()[FUNCTION.key].working == ()

    asyncio.run(run())


def test_who_came_first_is_served_first() -> None:
    async def run() -> list[int]:
        world = World(snapshot(instance("a", "serving"), assigned=("a",)))
        held = await world.router.acquire(FUNCTION)
        order: list[int] = []

        async def call(number: int) -> None:
            slot = await world.router.acquire(FUNCTION)
            order.append(number)
            await asyncio.sleep(0)
            world.router.release(slot)

        calls = [asyncio.create_task(call(number)) for number in range(5)]
        await asyncio.sleep(0.01)
        world.router.release(held)
        await asyncio.gather(*calls)
        world.router.close()
        return order

    assert asyncio.run(run()) == [0, 1, 2, 3, 4]


def test_first_tokens_of_instances_that_serve_teach_how_long_a_prefill_takes() -> None:
    async def run() -> None:
        world = World(snapshot(instance("a", "starting"), assigned=("a",)))

        async def call(prefill_seconds: float) -> float:
            slot = await world.router.acquire(FUNCTION)
            slot.prefill_seconds = prefill_seconds
            world.router.release(slot, 1.0)
            return world.router.demand()[FUNCTION.key].prefill_seconds

        assert await call(9.0) == 0.0  # the first pass of an instance that starts is no measure
        world.present = snapshot(instance("a", "serving"), assigned=("a",))
        assert await call(0.5) == 0.5
        assert await call(1.5) == pytest.approx(0.6)
        assert await call(0.0) == pytest.approx(0.6)  # nothing was said of it

    asyncio.run(run())


def test_placement_is_asked_again_only_after_a_while_or_a_change() -> None:
    async def run() -> None:
        world = World(snapshot())
        waiting = asyncio.create_task(world.router.acquire(FUNCTION))
        await asyncio.sleep(0.01)
        assert world.placer.asked == 1
        world.router.refresh()
        await asyncio.sleep(0.01)
        assert world.placer.asked == 1
        world.now += ASK_AGAIN_SECONDS
        world.placer.answer = PlaceAnswer((assignment("a"),))
        world.router.refresh()
        slot = await waiting
        assert (world.placer.asked, slot.target.instance_id) == (2, "a")
        world.router.release(slot)

    asyncio.run(run())


@pytest.mark.parametrize("failure", [CrashLoop, CoordinationLost])
def test_what_will_not_start_is_refused_at_once_each_time(failure: type[StokerError]) -> None:
    async def run() -> None:
        world = World(snapshot())
        world.placer.answer = failure("f.ns failed to start 5 times in a row.")
        for asked in (1, 2, 3):
            with pytest.raises(failure, match="5 times"):
                await world.router.acquire(FUNCTION)
            assert world.placer.asked == asked

    asyncio.run(asyncio.wait_for(run(), 5))


def test_an_instance_that_appears_in_the_view_serves_who_waits() -> None:
    async def run() -> None:
        world = World(snapshot())
        waiting = asyncio.create_task(world.router.acquire(FUNCTION))
        await asyncio.sleep(0.01)
        world.now += 0.5
        world.present = snapshot(instance("a", "serving"), assigned=("a",))
        world.router.refresh()
        slot = await waiting
        assert slot.queue_seconds + slot.place_seconds == pytest.approx(0.5)

    asyncio.run(run())


def test_a_failure_of_placement_is_told_only_when_nothing_runs() -> None:
    async def run() -> None:
        world = World(snapshot(instance("a", "serving"), assigned=("a",)))
        world.placer.answer = NoCapacity("Full.")
        held = await world.router.acquire(FUNCTION)
        waiting = asyncio.create_task(world.router.acquire(FUNCTION))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        world.router.release(held)
        world.router.release(await waiting)
        world.present = snapshot()
        with pytest.raises(NoCapacity, match="Full"):
            await world.router.acquire(FUNCTION)

    asyncio.run(run())


def test_placement_is_told_how_long_the_first_has_waited() -> None:
    async def run() -> None:
        world = World(snapshot(instance("a", "serving"), assigned=("a",)))
        held = await world.router.acquire(FUNCTION)
        assert world.router.demand()[FUNCTION.key].waited_seconds == 0.0
        waiting = []
        for _ in range(2):
            waiting.append(asyncio.create_task(world.router.acquire(FUNCTION)))
            await asyncio.sleep(0.01)
            world.now += 1.5
        assert world.router.demand()[FUNCTION.key].waited_seconds == 3.0
        world.router.release(held)
        first = await waiting[0]
        assert world.router.demand()[FUNCTION.key].waited_seconds == 1.5
        world.router.release(first)
        world.router.release(await waiting[1])
        world.router.close()

    asyncio.run(run())


def test_waiting_has_an_end() -> None:
    async def run() -> None:
        world = World(snapshot(), queue_seconds=0.05)
        with pytest.raises(Unavailable, match=r"no free instance within 0\.05 s"):
            await world.router.acquire(FUNCTION)
        assert world.router.demand()[FUNCTION.key].queued == 0

    asyncio.run(run())


def test_a_slot_given_to_who_just_left_goes_to_the_next() -> None:
    async def run() -> None:
        world = World(snapshot(instance("a", "serving"), assigned=("a",)))
        held = await world.router.acquire(FUNCTION)
        first = asyncio.create_task(world.router.acquire(FUNCTION))
        second = asyncio.create_task(world.router.acquire(FUNCTION))
        await asyncio.sleep(0.01)
        world.router.release(held)
        first.cancel()
        slot = await asyncio.wait_for(second, 1)
        assert world.router.in_flight(FUNCTION.key, "a") == 1
        world.router.release(slot)
        assert world.router.in_flight(FUNCTION.key, "a") == 0

    asyncio.run(run())


def test_a_dropped_instance_is_left_alone_for_a_while() -> None:
    async def run() -> None:
        world = World(snapshot(instance("a", "serving"), assigned=("a",)))
        slot = await world.router.acquire(FUNCTION)
        world.router.drop(slot)
        world.router.release(slot)
        waiting = asyncio.create_task(world.router.acquire(FUNCTION))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        world.now += 11
        world.router.refresh()
        assert (await waiting).target.instance_id == "a"

    asyncio.run(run())
