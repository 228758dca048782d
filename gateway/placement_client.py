"""Talks to the placement leader: where to send a request, and what is asked for here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import aiohttp
import structlog

from stoker.gateway.internal import wire_error
from stoker.placement.errors import StokerError, Unavailable
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
    """`leader` tells who leads by the present snapshot."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        leader: Callable[[], LeaderRecord | None],
        gateway_id: str,
        cluster_token: str,
    ) -> None:
        self._session = session
        self._leader = leader
        self._gateway_id = gateway_id
        self._headers = {"X-Stoker-Token": cluster_token, "Content-Type": "application/json"}
        self._report_failing = False

    async def place(
        self,
        function_key: str,
        demand: Callable[[], FunctionDemand],
        call_ids: Callable[[], tuple[str, ...]],
    ) -> PlaceAnswer:
        """Ask until a leader answers; its error, or Unavailable if none does in time."""
        deadline = time.monotonic() + ELECTION_SECONDS
        while True:
            try:
                request = PlaceRequest(self._gateway_id, function_key, demand(), call_ids())
                return decode(PlaceAnswer, await self._post("/place", encode(request)))
            except Unavailable as error:
                # Its subclasses are decisions; this one says only that nobody decided.
                if type(error) is not Unavailable or time.monotonic() > deadline:
                    raise
            # A leader that died cannot tell, and its record outlives it by its session.
            await asyncio.sleep(RETRY_SECONDS)

    async def why(self, name: str) -> WhyAnswer:
        """What was decided for a call or an instance; NotFound, or Unavailable."""
        return decode(WhyAnswer, await self._post("/why", encode(WhyRequest(name))))

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
        try:
            async with self._session.post(
                f"http://{leader.address}{path}",
                data=body,
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=CALL_SECONDS),
            ) as response:
                answer = await response.read()
                if response.status >= 400:
                    raise wire_error(response.status, answer, f"placement at {leader.address}")
                return answer
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(
                f"Expected an answer of placement at {leader.address}, "
                f"found: {error or type(error).__name__}.",
                "Look whether `stoker.placement.main` runs.",
                retry_after_seconds=1,
            ) from error

    def _note_report(self, error: StokerError | None) -> None:
        failing = error is not None
        if failing != self._report_failing:
            self._report_failing = failing
            if error is not None:
                _log.warning("report_failing", code=error.code, cause=error.cause)
            else:
                _log.info("report_arrives")
