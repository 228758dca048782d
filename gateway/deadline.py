"""The timeouts of one request, for functions that state them.

arrival ──> waits ──> head of the answer ──> piece ──> piece ──> end
├── response start ──┤                       ├─ idle ─┤
├── request ─────────────────────────────────────────────────────┤
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from stoker.gateway.exchange import Reply
from stoker.placement.errors import DeadlineExceeded, StokerError
from stoker.placement.timeouts import Timeouts

# A client that takes nothing any more does not get the last words either.
LAST_WORDS_SECONDS = 1.0
LastWords = Callable[[StokerError], bytes]


class Deadline:
    """Made where a request begins; `expired` says whether it ended the answer before its end."""

    def __init__(self, timeouts: Timeouts, arrived_at: float, function_key: str) -> None:
        self._timeouts = timeouts
        self._function_key = function_key
        loop = asyncio.get_running_loop()
        # The loop has a clock of its own.
        self._began_at = loop.time() - (time.monotonic() - arrived_at)
        self._timer = asyncio.timeout_at(
            self._earliest(timeouts.request_seconds, timeouts.response_start_seconds)
        )
        self._last_words: LastWords | None = None
        self._begun = False
        self.expired = False

    async def hold(self, work: Awaitable[None], reply: Reply) -> None:
        """Wait for `work`, whose answer goes through `reply`.

        DeadlineExceeded if the instance takes too long to answer; what it has begun is ended
        instead.
        """
        try:
            async with self._timer:
                await work
        except TimeoutError:
            self.expired = True
            error = DeadlineExceeded(
                f"request timeout: {self._function_key} did not answer in time.",
                "Ask for less in one request, or raise the function's timeouts.",
            )
            if not self._begun or not reply.status:
                raise error from None
            await self._end(reply, error)

    def begin(self, last_words: LastWords | None) -> None:
        """The answer begins; `last_words` end one that has no announced length."""
        self._begun = True
        self._last_words = last_words
        self.wrote()

    def wrote(self) -> None:
        """A piece has gone."""
        idle = self._timeouts.idle_seconds
        since = asyncio.get_running_loop().time() - self._began_at
        latest = self._earliest(
            self._timeouts.request_seconds, None if idle is None else since + idle
        )
        if latest != self._timer.when():
            self._timer.reschedule(latest)

    def _earliest(self, *seconds: float | None) -> float | None:
        given = [each for each in seconds if each is not None]
        return self._began_at + min(given) if given else None

    async def _end(self, reply: Reply, error: StokerError) -> None:
        """End the body cleanly; one of a length that was announced can only break off."""
        if self._last_words is None or reply.finished:
            return
        try:
            async with asyncio.timeout(LAST_WORDS_SECONDS):
                await reply.finish(self._last_words(error))
        except TimeoutError:
            return


def plain_words(error: StokerError) -> bytes:  # noqa: ARG001
    """What Knative's clients find at the end of an answer that took too long."""
    return b"request timeout"
