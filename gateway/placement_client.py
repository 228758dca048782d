"""Talks to the placement leader: where to send a request, and what is asked for here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import aiohttp
import structlog

from stoker.gateway.internal import wire_error
from stoker.placement.call_signature import HEADER, call_signature
from stoker.placement.errors import CoordinationLost, StokerError, Unavailable
from stoker.placement.records import (
    DemandReport,
    FunctionDemand,
    LeaderRecord,
    PlaceAnswer,
    PlaceRequest,
    decode,
    encode,
)
from stoker.placement.why import WhyAnswer, WhyRequest

# An election lasts as long as the session of a dead leader; then who waits gives up.
ELECTION_SECONDS = 20.0
RETRY_SECONDS = 0.25
CALL_SECONDS = 10.0
REPORT_SECONDS = 1.0

_log = structlog.get_logger()


class PlacementClient:
    """`leader` tells who leads by the present snapshot, `connected` whether it is kept fresh."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        leader: Callable[[], LeaderRecord | None],
        connected: Callable[[], bool],
        gateway_id: str,
        cluster_token: str,
    ) -> None:
        self._session = session
        self._leader = leader
        self._connected = connected
        self._gateway_id = gateway_id
        self._cluster_token = cluster_token
        self._report_failing = False
        self._under_way: dict[asyncio.Task[bytes], str] = {}

    async def place(
        self,
        function_key: str,
        demand: Callable[[], FunctionDemand],
        call_ids: Callable[[], tuple[str, ...]],
    ) -> PlaceAnswer:
        """Ask until a leader answers; its error, or Unavailable if none does in time.

        CoordinationLost at once where nothing would tell of the next leader.
        """
        deadline = time.monotonic() + ELECTION_SECONDS
        while True:
            try:
                request = PlaceRequest(self._gateway_id, function_key, demand(), call_ids())
                return decode(PlaceAnswer, await self._post("/place", encode(request)))
            except Unavailable as error:
                # Its subclasses are decisions, but for one: these say only that nobody decided.
                undecided = type(error) in (Unavailable, CoordinationLost)
                if not undecided or time.monotonic() > deadline:
                    raise
                if not self._connected():
                    raise CoordinationLost(
                        "Expected the store to tell who decides where functions start, found it "
                        f"out of reach. {error.cause}",
                        "Instances that serve go on; see whether the servers of the store run.",
                        retry_after_seconds=error.retry_after_seconds,
                    ) from error
            # A leader that died cannot tell, and its record outlives it by its session.
            await asyncio.sleep(RETRY_SECONDS)

    async def why(self, name: str) -> WhyAnswer:
        """What was decided for a call or an instance; NotFound, or Unavailable."""
        return decode(WhyAnswer, await self._post("/why", encode(WhyRequest(name))))

    def follow(self) -> None:
        """The snapshot changed: who hangs is not waited for once it leads no more."""
        leader = self._leader()
        for task, address in self._under_way.items():
            if leader is None or leader.address != address:
                task.cancel()

    async def report_forever(self, demand: Callable[[], Mapping[str, FunctionDemand]]) -> None:
        """Tell the leader the full demand each second, also when nothing changed.

        The leader takes the silence of a gateway as its end, and a new leader knows nothing yet.
        """
        while True:
            report = DemandReport(self._gateway_id, demand())
            try:
                await self._post("/report", encode(report))
                self._note_report(None)
            except StokerError as error:
                self._note_report(error)
            await asyncio.sleep(REPORT_SECONDS)

    async def _post(self, path: str, body: bytes) -> bytes:
        leader = self._leader()
        if leader is None:
            raise Unavailable(
                "No placement leads at this moment.",
                "Try again after the election.",
                retry_after_seconds=1,
            )
        asking = asyncio.create_task(self._ask(leader.address, path, body))
        self._under_way[asking] = leader.address
        try:
            await asyncio.wait({asking})
        finally:
            del self._under_way[asking]
            asking.cancel()
        if asking.cancelled():
            raise _no_answer(leader.address, "that another leads")
        return asking.result()

    async def _ask(self, address: str, path: str, body: bytes) -> bytes:
        try:
            async with self._session.post(
                f"http://{address}{path}",
                data=body,
                headers={
                    HEADER: call_signature(self._cluster_token, "POST", path, body),
                    "Content-Type": "application/json",
                },
                timeout=aiohttp.ClientTimeout(total=CALL_SECONDS),
                allow_redirects=False,
            ) as response:
                answer = await response.read()
                if response.status >= 300:
                    raise wire_error(response.status, answer, f"placement at {address}")
                return answer
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _no_answer(address, f"{error or type(error).__name__}") from error

    def _note_report(self, error: StokerError | None) -> None:
        failing = error is not None
        if failing != self._report_failing:
            self._report_failing = failing
            if error is not None:
                _log.warning("report_failing", code=error.code, cause=error.cause)
            else:
                _log.info("report_arrives")


def _no_answer(address: str, found: str) -> Unavailable:
    return Unavailable(
        f"Expected an answer of placement at {address}, found: {found}.",
        "Look whether `stoker placement` runs there.",
        retry_after_seconds=1,
    )
