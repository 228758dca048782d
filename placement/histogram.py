"""The hybrid histogram of idle times (Serverless in the Wild, ATC'20). Pure.

An idle time is from the end of a function's last request to its next. From those seen before
follows when to unload, when to load again (pre-warm) and for how long to keep then.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

BINS = 240
BIN_SECONDS = 60.0
RANGE_SECONDS = BINS * BIN_SECONDS
HEAD_PERCENTILE = 0.05
TAIL_PERCENTILE = 0.99
PREWARM_MARGIN = 0.9
KEEP_MARGIN = 1.1
# Below this coefficient of variation of the bins' counts, the histogram says nothing.
CV_MINIMUM = 2.0
# Fewer idle times than this say nothing either; the paper leaves the number open.
SAMPLES_MINIMUM = 10
# Above this share of idle times beyond the range, they are forecast one by one.
OUT_OF_RANGE_SHARE = 0.5
FORECAST_SAMPLES = 6
FORECAST_MARGIN = 0.15


@dataclass(frozen=True, slots=True)
class Window:
    """Seconds since the end of the last request: loaded from `prewarm` to `keep`.

    With `prewarm` 0 it is never unloaded in between.
    """

    prewarm_seconds: float
    keep_seconds: float


@dataclass(slots=True)
class IdleHistogram:
    """Counts of idle times by the minute. Bounded: 240 numbers and the last few beyond them."""

    counts: list[int] = field(default_factory=lambda: [0] * BINS)
    inside: int = 0
    outside: int = 0
    squares: int = 0
    long_ones: deque[float] = field(default_factory=lambda: deque(maxlen=FORECAST_SAMPLES))

    def add(self, idle_seconds: float) -> None:
        if idle_seconds >= RANGE_SECONDS:
            self.outside += 1
            self.long_ones.append(idle_seconds)
            return
        index = int(max(0.0, idle_seconds) // BIN_SECONDS)
        self.squares += 2 * self.counts[index] + 1
        self.counts[index] += 1
        self.inside += 1

    def variation(self) -> float:
        """The coefficient of variation of the bins' counts: 0 if flat, sqrt(239) for one bin."""
        if self.inside == 0:
            return 0.0
        mean = self.inside / BINS
        return math.sqrt(max(0.0, self.squares / BINS - mean * mean)) / mean

    def window(self) -> Window:
        samples = self.inside + self.outside
        if samples >= SAMPLES_MINIMUM and self.outside > OUT_OF_RANGE_SHARE * samples:
            forecast = sum(self.long_ones) / len(self.long_ones)
            return Window(
                (1.0 - FORECAST_MARGIN) * forecast,
                (1.0 + FORECAST_MARGIN) * forecast,
            )
        if samples < SAMPLES_MINIMUM or self.variation() < CV_MINIMUM:
            return Window(0.0, RANGE_SECONDS)
        head, tail = self._bin(HEAD_PERCENTILE), self._bin(TAIL_PERCENTILE)
        return Window(PREWARM_MARGIN * head * BIN_SECONDS, KEEP_MARGIN * (tail + 1) * BIN_SECONDS)

    def _bin(self, percentile: float) -> int:
        """The first bin at which the share of idle times reaches the percentile."""
        wanted, seen = percentile * self.inside, 0
        for index, count in enumerate(self.counts):
            seen += count
            if seen >= wanted:
                return index
        return BINS - 1
