"""Who runs now, who waits, and who is told to come back: the bounds of one instance."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from stoker.placement.errors import QueueFull

WAITING_PER_SLOT_MAXIMUM = 2
RETRY_SECONDS_MINIMUM = 1.0
RETRY_SECONDS_MAXIMUM = 120.0
# How much the newest request says of how long one takes.
_WEIGHT = 0.2


class Admission:
    """`concurrency` requests run at once, twice as many wait, first come first served."""

    def __init__(self, concurrency: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._concurrency = concurrency
        self._clock = clock
        self._slots = asyncio.Semaphore(concurrency)
        self._inside = 0
        self._maximum = concurrency * (1 + WAITING_PER_SLOT_MAXIMUM)
        self._request_seconds = 0.0

    @property
    def inside(self) -> int:
        """Requests that run or wait."""
        return self._inside

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place among those who run or wait; QueueFull, with when to come back, at once."""
        if self._inside >= self._maximum:
            raise QueueFull(
                f"Expected at most {self._maximum} requests in this instance, found one more.",
                "Try again later, or raise the function's maximum of instances.",
                retry_after_seconds=self._retry_seconds(),
            )
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """The right to run; how long it is held teaches how long requests take."""
        async with self._slots:
            began_at = self._clock()
            yield
            self._learn(self._clock() - began_at)

    def _learn(self, seconds: float) -> None:
        """From requests that came to their end: those cut short say nothing of the others."""
        weight = _WEIGHT if self._request_seconds else 1.0
        self._request_seconds += weight * (seconds - self._request_seconds)

    def _retry_seconds(self) -> float:
        """When those who wait now will have run, at the rate of the last requests."""
        waiting = self._maximum - self._concurrency
        seconds = self._request_seconds * waiting / self._concurrency
        return min(RETRY_SECONDS_MAXIMUM, max(RETRY_SECONDS_MINIMUM, seconds))
