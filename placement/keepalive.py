"""How long to keep which layer, what to give up first, and what to make ready again. Pure.

A policy is told of each arrival and each departure of a function's last request; it remembers
what it needs of them and nothing else. Times are seconds on the caller's clock, so the same calls
give the same answers.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from stoker.placement.ladder import Ladder, Layer, Rung

FIXED_SECONDS = 600.0
# RainbowCake: the last arrivals of a layer within a day, and the percentile of their intervals.
ARRIVALS_MAXIMUM = 6
ARRIVALS_SECONDS = 86400.0
INTERVAL_PERCENTILE = 0.8
LAYER_SECONDS_MINIMUM = 60.0
LAYER_SECONDS_UNKNOWN = 600.0
RAINBOWCAKE_ALPHA = 0.996
# alpha / (1 - alpha) seconds of holding one MB for each second of its start.
RAINBOWCAKE_PRICE = RAINBOWCAKE_ALPHA / (1.0 - RAINBOWCAKE_ALPHA) * 1e6
# Stoker: as many arrivals say how often a layer is called. A start that imports or reads weights
# counts as so much longer than it lasts, because somebody notices it, and one that lasts twice as
# long is more than twice as bad.
LADDERS_ARRIVALS = 24
NOTICED_SECONDS = 1.0
IMPATIENCE = 1.3


@dataclass(frozen=True, slots=True)
class Prewarm:
    """Make the layers up to `rung` ready `after_seconds` from now and keep them so long."""

    after_seconds: float
    keep_seconds: float
    rung: Rung


class Policy(Protocol):
    def arrived(self, ladder: Ladder, now: float, /) -> None:
        """A request for the function has come."""

    def left(self, ladder: Ladder, now: float, /) -> None:
        """The last request of the function has ended; the two below are asked next."""

    def keep_seconds(self, layer: Layer, now: float, /) -> float:
        """How long to keep a layer that nobody uses from now on; infinite: while there is room."""

    def prewarm(self, ladder: Ladder, now: float, /) -> Prewarm | None:
        """When to make what ready again, if no request comes before."""

    def priority(self, layers: Sequence[Layer], now: float, /) -> float:
        """What keeping these layers, which can only go together, is worth. The least goes first."""

    def evicted(self, layers: Sequence[Layer], now: float, /) -> None:
        """These layers were given up for want of memory."""


def break_even_seconds(layer: Layer, byte_seconds_per_second: float) -> float:
    """The time after which holding the layer has cost as much as making it anew would.

    `byte_seconds_per_second` is the price: the bytes times seconds of memory that one second of
    a start is worth. Whatever the arrivals, the cost is at most twice the least possible.
    """
    return byte_seconds_per_second * layer.seconds / max(1, layer.byte_count)


def interval_seconds(rate: float, percentile: float = INTERVAL_PERCENTILE) -> float:
    """The time within which the next Poisson arrival comes with this probability, in whole s."""
    return math.ceil(-math.log(1.0 - percentile) / rate)


def rainbowcake_seconds(rate: float | None, break_even: float) -> float:
    """RainbowCake's time to live of a layer; the break-even time caps the minimum as well."""
    if rate is None:
        return LAYER_SECONDS_UNKNOWN
    return min(max(interval_seconds(rate), LAYER_SECONDS_MINIMUM), break_even)


def greedy_dual(clock: float, frequency: float, seconds: float, byte_count: int) -> float:
    """FaasCache's priority: clock + frequency x cost / size."""
    return clock + frequency * seconds / max(1, byte_count)


def waiting_cost(seconds: float, *, noticed: bool) -> float:
    """What it costs that somebody waits; `noticed` if for imports or weights."""
    return float((seconds + (NOTICED_SECONDS if noticed else 0.0)) ** IMPATIENCE)


def ageing_rate(count: int, age: float, idle: float) -> float:
    """Calls per second, after `count` calls since `age` seconds, the last `idle` seconds ago.

    The geometric mean of how often (count / age) and how recently (1 / idle): calls come in
    bursts, so neither says enough by itself. Times below a second count as one.
    """
    return math.sqrt(count / max(1.0, age) / max(1.0, idle))


def worthwhile_seconds(
    count: int, age: float, seconds: float, byte_count: int, byte_seconds_per_second: float
) -> float:
    """How long from now `ageing_rate` x cost / size stays above the price of memory.

    With one call, just now, that is the break-even time; it grows with the calls.
    """
    break_even = byte_seconds_per_second * seconds / max(1, byte_count)
    if math.isinf(break_even):
        return math.inf
    # rate x break-even = 1, solved for the idle time: (age + idle) x idle = count x break-even^2
    return (math.sqrt(age * age + 4.0 * count * break_even**2) - age) / 2.0


@dataclass(slots=True)
class Arrivals:
    """The last arrivals of everybody who shares a layer: their rates add up."""

    maximum: int = ARRIVALS_MAXIMUM
    times: dict[str, deque[float]] = field(default_factory=dict)

    def add(self, key: str, now: float) -> None:
        times = self.times.get(key)
        if times is None:
            times = self.times[key] = deque(maxlen=self.maximum)
        times.append(now)

    def last(self, key: str) -> float | None:
        times = self.times.get(key)
        return times[-1] if times else None

    def forget(self, key: str) -> None:
        self.times.pop(key, None)

    def seen(self, key: str, now: float) -> tuple[int, float]:
        """How many arrivals of the last day are remembered, and how long ago the first was."""
        times = self.times.get(key)
        while times and now - times[0] > ARRIVALS_SECONDS:
            times.popleft()
        return (len(times), now - times[0]) if times else (0, 0.0)

    def rate(self, key: str, now: float) -> float | None:
        """Arrivals per second, or None where there was none within a day."""
        count, age = self.seen(key, now)
        return count / max(1.0, age) if count else None
