"""The keep-alive policies: Stoker's own and those that it is compared with. Pure.

Each is a `keepalive.Policy`; all keep what they learn in bounded memory per function and layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from stoker.placement.histogram import IdleTimes, Window
from stoker.placement.keepalive import (
    FIXED_SECONDS,
    LADDERS_ARRIVALS,
    RAINBOWCAKE_PRICE,
    Arrivals,
    Prewarm,
    ageing_rate,
    break_even_seconds,
    greedy_dual,
    interval_seconds,
    rainbowcake_seconds,
    waiting_cost,
    worthwhile_seconds,
)
from stoker.placement.ladder import Ladder, Layer, Rung


class LeastRecentlyUsed:
    """Keep everything as long as there is room; what was used least recently goes first."""

    def __init__(self) -> None:
        self._used_at: dict[str, float] = {}

    def arrived(self, ladder: Ladder, now: float) -> None:
        self._use(ladder, now)

    def left(self, ladder: Ladder, now: float) -> None:
        self._use(ladder, now)

    def keep_seconds(self, _layer: Layer, _now: float) -> float:
        return math.inf

    def prewarm(self, _ladder: Ladder, _now: float) -> Prewarm | None:
        return None

    def priority(self, layers: Sequence[Layer], _now: float) -> float:
        return max(self._used_at.get(layer.key, -math.inf) for layer in layers)

    def evicted(self, _layers: Sequence[Layer], _now: float) -> None:
        """Nothing to learn from it."""

    def _use(self, ladder: Ladder, now: float) -> None:
        for layer in ladder.layers:
            self._used_at[layer.key] = now


class Fixed(LeastRecentlyUsed):
    """Keep everything for the same time, which is what most platforms do."""

    def __init__(self, seconds: float = FIXED_SECONDS) -> None:
        super().__init__()
        self._seconds = seconds

    def keep_seconds(self, _layer: Layer, _now: float) -> float:
        return self._seconds


class BreakEven(LeastRecentlyUsed):
    """Keep each layer until holding it has cost what making it anew would."""

    def __init__(self, byte_seconds_per_second: float) -> None:
        super().__init__()
        self._price = byte_seconds_per_second

    def keep_seconds(self, layer: Layer, _now: float) -> float:
        return break_even_seconds(layer, self._price)


class HybridHistogram(LeastRecentlyUsed):
    """Unload and load again as each function's own idle times suggest."""

    def __init__(self) -> None:
        super().__init__()
        self._idle = IdleTimes()
        self._window: dict[str, Window] = {}

    def arrived(self, ladder: Ladder, now: float) -> None:
        super().arrived(ladder, now)
        self._idle.ends(ladder.function, now)

    def left(self, ladder: Ladder, now: float) -> None:
        super().left(ladder, now)
        self._idle.begins(ladder.function, now)
        window = self._idle.histogram(ladder.function).window()
        for layer in ladder.layers:
            self._window[layer.key] = window

    def keep_seconds(self, layer: Layer, _now: float) -> float:
        window = self._window[layer.key]
        return 0.0 if window.prewarm_seconds > 0 else window.keep_seconds

    def prewarm(self, ladder: Ladder, _now: float) -> Prewarm | None:
        return _prewarm(self._idle, ladder.function, Rung.SERVING)


class RainbowCake(LeastRecentlyUsed):
    """Peel one layer at a time; a layer's arrivals are those of all who share it.

    The published price was made for containers of some megabytes.
    """

    def __init__(self, byte_seconds_per_second: float = RAINBOWCAKE_PRICE) -> None:
        super().__init__()
        self._price = byte_seconds_per_second
        self._arrivals = Arrivals()
        self._arrived_at: dict[str, float] = {}

    def arrived(self, ladder: Ladder, now: float) -> None:
        super().arrived(ladder, now)
        self._arrived_at[ladder.function] = now
        for layer in ladder.layers:
            self._arrivals.add(layer.key, now)

    def keep_seconds(self, layer: Layer, now: float) -> float:
        rate = self._arrivals.rate(layer.key, now)
        return rainbowcake_seconds(rate, break_even_seconds(layer, self._price))

    def prewarm(self, ladder: Ladder, now: float) -> Prewarm | None:
        top = ladder.layers[-1]
        rate = self._arrivals.rate(top.key, now)
        if rate is None:
            return None
        due = self._arrived_at[ladder.function] + interval_seconds(rate)
        if due <= now:
            return None
        keep = min(self.keep_seconds(layer, now) for layer in ladder.layers)
        return Prewarm(due - now, keep, top.rung)


class GreedyDual(LeastRecentlyUsed):
    """Keep everything while there is room; what is cheapest to lose for its size goes first."""

    def __init__(self) -> None:
        super().__init__()
        self._clock = 0.0
        self._frequency: dict[str, int] = {}
        self._standing: dict[str, float] = {}

    def arrived(self, ladder: Ladder, now: float) -> None:
        super().arrived(ladder, now)
        for layer in ladder.layers:
            self._frequency[layer.key] = self._frequency.get(layer.key, 0) + 1
            self._standing[layer.key] = self._clock

    def priority(self, layers: Sequence[Layer], _now: float) -> float:
        size = sum(layer.byte_count for layer in layers)
        return max(self._standing.get(layer.key, 0.0) for layer in layers) + sum(
            greedy_dual(0.0, self._frequency.get(layer.key, 0), layer.seconds, size)
            for layer in layers
        )

    def evicted(self, layers: Sequence[Layer], now: float) -> None:
        self._clock = max(self._clock, self.priority(layers, now))
        for layer in layers:
            self._frequency[layer.key] = 0


class Ladders(LeastRecentlyUsed):
    """Stoker's own: each layer is worth the waiting that it will probably save.

    worth = rate x cost / size; the rate is that of all functions that share the layer, and falls
    while none of them is called. A layer is kept until its worth has fallen to the price of memory,
    so one that was called once is kept for its break-even time and one that is called often for
    longer. Under pressure the least worth goes first: greedy-dual, with a rate that ages by itself
    in place of the clock. A function whose idle times are regular is warmed up to host memory
    before its next call.

    Without a price, memory that nobody else needs costs nothing, and layers stay while there is
    room.
    """

    def __init__(self, byte_seconds_per_second: float = math.inf) -> None:
        super().__init__()
        self._price = byte_seconds_per_second
        self._arrivals = Arrivals(LADDERS_ARRIVALS)
        self._idle = IdleTimes()
        self._expected: dict[str, tuple[float, Window]] = {}

    def arrived(self, ladder: Ladder, now: float) -> None:
        super().arrived(ladder, now)
        self._idle.ends(ladder.function, now)
        for layer in ladder.layers:
            self._arrivals.add(layer.key, now)
            self._expected.pop(layer.key, None)

    def left(self, ladder: Ladder, now: float) -> None:
        super().left(ladder, now)
        self._idle.begins(ladder.function, now)
        window = self._idle.histogram(ladder.function).window()
        if window.prewarm_seconds > 0:
            for layer in ladder.layers:
                self._expected[layer.key] = now, window

    def keep_seconds(self, layer: Layer, now: float) -> float:
        count, age = self._arrivals.seen(layer.key, now)
        return worthwhile_seconds(count, age, _cost(layer), layer.byte_count, self._price)

    def prewarm(self, ladder: Ladder, _now: float) -> Prewarm | None:
        return _prewarm(self._idle, ladder.function, Rung.HOST)

    def priority(self, layers: Sequence[Layer], now: float) -> float:
        size = sum(layer.byte_count for layer in layers)
        return sum(
            greedy_dual(0.0, self._rate(layer.key, now), _cost(layer), size) for layer in layers
        )

    def _rate(self, key: str, now: float) -> float:
        """Calls per second to be expected: between what recency and what frequency alone say."""
        count, age = self._arrivals.seen(key, now)
        idle = now - self._used_at.get(key, -math.inf)
        rate = ageing_rate(count, age, idle)
        since, window = self._expected.get(key, (math.inf, Window(0.0, 0.0)))
        if window.prewarm_seconds <= now - since <= window.keep_seconds:
            rate = max(rate, 1.0 / (window.keep_seconds - window.prewarm_seconds))
        return rate


def _cost(layer: Layer) -> float:
    return waiting_cost(layer.seconds, noticed=layer.rung in (Rung.IMPORTED, Rung.HOST))


def _prewarm(idle: IdleTimes, function: str, rung: Rung) -> Prewarm | None:
    window = idle.histogram(function).window()
    if window.prewarm_seconds <= 0:
        return None
    keep = window.keep_seconds - window.prewarm_seconds
    return Prewarm(window.prewarm_seconds, keep, rung)
