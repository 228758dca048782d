"""Limits of rate and concurrency, each with a bounded queue: of a function, and of a token.

They count in one gateway process: n gateways together let n times as much through. What is over a
limit waits in the order in which it came; what the queue cannot hold is refused with the time
after which there may be room. A request that is refused costs nothing of the rate.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from stoker.placement.errors import RateLimited
from stoker.placement.records import FunctionRecord
from stoker.placement.request_limits import limits_of
from stoker.placement.token_record import RequestLimits, TokenRecord

# So many seconds' worth of the rate may come at once.
BURST_SECONDS = 1.0
# What the newest request says of how long the next ones take.
NEWEST_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom a limit is about: `key` tells it apart, `name` is for people."""

    key: str
    name: str
    limits: RequestLimits


@dataclass(slots=True)
class Gate:
    """What is known of one subject. `next_at` is when a request would be due if all that came were
    spread evenly; times are monotonic seconds.
    """

    next_at: float = 0.0
    in_flight: int = 0
    waiting: int = 0
    queue: deque[asyncio.Future[None]] = field(default_factory=deque)
    request_seconds: float = 1.0


def subjects(function: FunctionRecord, caller: TokenRecord | None) -> tuple[Subject, ...]:
    """Whose limits count for this call, the token's first; most often nobody's."""
    found = []
    if caller is not None and _limited(caller.limits):
        key = f"token {caller.token_id}"
        found.append(Subject(key, f"The token {caller.token_id}", caller.limits))
    limits = limits_of(function.annotations)
    if _limited(limits):
        found.append(Subject(f"function {function.key}", function.key, limits))
    return tuple(found)


def due(next_at: float, rate: float | None, now: float) -> tuple[float, float]:
    """When a request that comes `now` may start, and the gate's `next_at` once it is counted.

    In any span of t seconds at most BURST_SECONDS * rate (but 1) + t * rate requests start.
    """
    if rate is None:
        return now, next_at
    interval = 1.0 / rate
    tolerance = max(0.0, BURST_SECONDS - interval)
    evenly = max(next_at, now)
    return max(now, evenly - tolerance), evenly + interval


class Limiter:
    """Every gate of this process, in the event loop's thread.

    `seconds_maximum` bounds the wait; who cannot be due by then is refused at once.
    """

    def __init__(self, seconds_maximum: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds_maximum = seconds_maximum
        self._clock = clock
        # As many as there are functions and tokens with limits that were ever used.
        self._gates: dict[str, Gate] = {}

    @asynccontextmanager
    async def admitted(self, subject: Subject) -> AsyncIterator[None]:
        """Hold one place of the subject's, after queueing if need be; RateLimited."""
        gate = self._gates.setdefault(subject.key, Gate())
        await self._enter(gate, subject)
        began_at = self._clock()
        try:
            yield
        finally:
            seconds = self._clock() - began_at
            gate.request_seconds += NEWEST_SHARE * (seconds - gate.request_seconds)
            self._leave(gate)

    async def _enter(self, gate: Gate, subject: Subject) -> None:
        limits, now = subject.limits, self._clock()
        start_at, next_at = due(gate.next_at, limits.requests_per_second, now)
        at_once = start_at <= now and _has_room(gate, limits)
        full = gate.waiting >= limits.queue_length or start_at - now > self._seconds_maximum
        if not at_once and full:
            raise _refusal(gate, subject, start_at - now)
        gate.next_at = next_at
        if at_once:
            gate.in_flight += 1
            return
        gate.waiting += 1
        try:
            async with asyncio.timeout(self._seconds_maximum):
                await self._wait(gate, limits, start_at - now)
        except TimeoutError:
            raise _refusal(gate, subject, 0.0) from None
        finally:
            gate.waiting -= 1

    async def _wait(self, gate: Gate, limits: RequestLimits, seconds: float) -> None:
        try:
            if seconds > 0:
                await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            # Its client left before it was due: who comes next takes its place.
            gate.next_at -= 1.0 / limits.requests_per_second if limits.requests_per_second else 0.0
            raise
        if _has_room(gate, limits):
            gate.in_flight += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        gate.queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave(gate)
            elif turn in gate.queue:
                gate.queue.remove(turn)
            raise

    def _leave(self, gate: Gate) -> None:
        """Pass the place on to who waits first, or give it up."""
        while gate.queue:
            turn = gate.queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        gate.in_flight -= 1


def _limited(limits: RequestLimits) -> bool:
    return limits.requests_per_second is not None or limits.concurrency is not None


def _has_room(gate: Gate, limits: RequestLimits) -> bool:
    if limits.concurrency is None:
        return True
    return gate.in_flight < limits.concurrency and not gate.queue


def _refusal(gate: Gate, subject: Subject, due_in_seconds: float) -> RateLimited:
    limits = subject.limits
    slots = limits.concurrency or 0
    drained = gate.request_seconds * (gate.waiting + 1) / slots if slots else 0.0
    allowed = [f"{slots} requests at once"] if slots else []
    if limits.requests_per_second is not None:
        allowed.append(f"{limits.requests_per_second:g} requests per second")
    return RateLimited(
        f"{subject.name} may have {' and '.join(allowed)}, and {gate.waiting} wait already.",
        "Send the request again later.",
        retry_after_seconds=max(due_in_seconds, drained),
    )
