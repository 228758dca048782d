"""Knative's pod autoscaler: how many instances an average load calls for. Pure: no clock, no I/O.

    desired = ceil(average / (target * utilization)), within the rates of change

The average of a stable window decides, until that of a short window calls for at least twice what
is there. Then the autoscaler panics: it follows the larger of the two and lets nothing go until
a stable window has passed without such a moment.

OpenFaaS' `desired = ceil(ready * mean load / (target * proportion))` is the same formula, because
`ready * mean load` is the load of all.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal

Metric = Literal["concurrency", "rps"]

# The cluster-wide settings, at their upstream defaults.
TICK_SECONDS = 2.0
UP_RATE = 1000.0
DOWN_RATE = 2.0
GRACE_SECONDS = 30.0
TARGET_MINIMUM = 0.01
CONCURRENCY_TARGET = 100.0
RPS_TARGET = 200.0
# The marks of a meter stand at least this far apart.
MARK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Kpa:
    """One function's settings. `target` is the load that one instance takes when fully used.

    `burst_capacity` is the load that must find room at once: 0 for none, -1 for any.
    Unless it is `alone`, the requests of the moment count as well, and idle instances stay as long
    as without it.
    """

    metric: Metric = "concurrency"
    target: float = CONCURRENCY_TARGET
    utilization: float = 0.7
    window_seconds: float = 60.0
    panic_window_percentage: float = 10.0
    panic_threshold: float = 2.0
    burst_capacity: float = 211.0
    initial: int = 1
    activation: int = 1
    down_delay_seconds: float = 0.0
    alone: bool = True

    @property
    def target_load(self) -> float:
        """The load per instance that is aimed at."""
        return max(TARGET_MINIMUM, self.target * self.utilization)

    @property
    def panic_window_seconds(self) -> float:
        return max(1.0, float(round(self.window_seconds * self.panic_window_percentage / 100.0)))


@dataclass(frozen=True, slots=True)
class Panic:
    """Since when, and the most that was desired meanwhile."""

    since: float
    most: int


@dataclass(frozen=True, slots=True)
class State:
    """What one decision leaves for the next: the panic, and what was desired of late and when."""

    panic: Panic | None = None
    desired: tuple[tuple[float, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """`excess_burst` is the room beyond the burst capacity: below 0, requests are buffered."""

    desired: int
    excess_burst: float
    state: State


def decide(kpa: Kpa, state: State, ready: int, stable: float, panic: float, now: float) -> Decision:
    """One tick: the averages of both windows, while `ready` instances serve.

    The bounds of the function are not applied: what is desired may be more than its maximum.
    """
    base = max(1, ready)
    raw_stable = math.ceil(stable / kpa.target_load)
    raw_panic = math.ceil(panic / kpa.target_load)
    by_stable, by_panic = _bounded(kpa, raw_stable, base), _bounded(kpa, raw_panic, base)
    panicking = _panic(kpa, state.panic, raw_panic / base >= kpa.panic_threshold, now)
    desired = by_stable
    if panicking is not None:
        desired = max(by_stable, by_panic, panicking.most)
        panicking = Panic(panicking.since, desired)
    recent: tuple[tuple[float, int], ...] = ()
    if kpa.down_delay_seconds > 0:
        oldest = now - kpa.down_delay_seconds
        recent = _falling((*(item for item in state.desired if item[0] > oldest), (now, desired)))
        desired = recent[0][1]
    return Decision(desired, _excess_burst(kpa, ready, panic), State(panicking, recent))


def _bounded(kpa: Kpa, raw: int, base: int) -> int:
    """The raw count within the rates of change, and not below the scale of activation."""
    count = min(max(raw, math.floor(base / DOWN_RATE)), math.ceil(UP_RATE * base))
    return max(count, kpa.activation) if raw > 0 and kpa.activation > 1 else count


def _panic(kpa: Kpa, panic: Panic | None, over: bool, now: float) -> Panic | None:
    if over:
        return Panic(now, panic.most if panic else 0)
    if panic is not None and now - panic.since > kpa.window_seconds:
        return None
    return panic


def _falling(desired: tuple[tuple[float, int], ...]) -> tuple[tuple[float, int], ...]:
    """Without those that a later and larger one makes irrelevant: the first is the maximum."""
    kept: list[tuple[float, int]] = []
    for item in desired:
        while kept and kept[-1][1] <= item[1]:
            kept.pop()
        kept.append(item)
    return tuple(kept)


def _excess_burst(kpa: Kpa, ready: int, panic: float) -> float:
    if kpa.burst_capacity <= 0:
        return max(-1.0, kpa.burst_capacity)
    return math.floor(ready * kpa.target - kpa.burst_capacity - panic)


class Meter:
    """The averages of a load over time: of a level (requests in flight) or of events (requests).

    What was never told counts for nothing: an average is over the part of its window since the
    first word, and after a silent window everything begins anew. Bounded: a mark per second.
    """

    __slots__ = ("_level", "_marks", "_now", "_total", "_window_seconds")

    def __init__(self, window_seconds: float) -> None:
        self._window_seconds = window_seconds
        # (time, the integral of the level plus the events until then)
        self._marks: deque[tuple[float, float]] = deque()
        self._total = self._level = 0.0
        self._now = -math.inf

    def set_level(self, level: float, now: float) -> None:
        """The level is so high from now on."""
        self._pass_to(now)
        self._level = level

    def add(self, events: float, now: float) -> None:
        """So many events have happened since the last word."""
        self._pass_to(now)
        self._total += events

    def average(self, seconds: float, now: float) -> float | None:
        """Per second over the last `seconds`; None where a whole window was silent."""
        if not self._marks or now - self._now >= self._window_seconds:
            return None
        begin = max(now - seconds, self._marks[0][0])
        total = self._total + self._level * (now - self._now)
        if now - begin < MARK_SECONDS:
            # Too short a time to tell a rate: what happened in it counts as one second's.
            return max(self._level, total - self._at(begin))
        return (total - self._at(begin)) / (now - begin)

    def _pass_to(self, now: float) -> None:
        if now - self._now >= self._window_seconds:
            self._marks.clear()
            self._total = self._level = 0.0
            self._now = now
        now = max(now, self._now)
        self._total += self._level * (now - self._now)
        self._now = now
        if not self._marks or now - self._marks[-1][0] >= MARK_SECONDS:
            self._marks.append((now, self._total))
        while len(self._marks) > 2 and self._marks[1][0] <= now - self._window_seconds:
            self._marks.popleft()

    def _at(self, moment: float) -> float:
        """The total at a moment, as if it had grown evenly between two marks."""
        later = (self._now, self._total)
        for mark in reversed(self._marks):
            if mark[0] <= moment:
                span = later[0] - mark[0]
                share = 0.0 if span <= 0 else min(1.0, (moment - mark[0]) / span)
                return mark[1] + share * (later[1] - mark[1])
            later = mark
        return self._marks[0][1]
