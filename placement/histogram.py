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
    """Counts of idle times by the minute. Bounded: 240 numbers and the last few beyond them.

    Another `bin_seconds` makes all of it faster or slower.
    """

    bin_seconds: float = BIN_SECONDS
    counts: list[int] = field(default_factory=lambda: [0] * BINS)
    inside: int = 0
    outside: int = 0
    squares: int = 0
    long_ones: deque[float] = field(default_factory=lambda: deque(maxlen=FORECAST_SAMPLES))

    @property
    def samples(self) -> int:
        return self.inside + self.outside

    def add(self, idle_seconds: float) -> None:
        index = int(max(0.0, idle_seconds) // self.bin_seconds)
        if index >= BINS:
            self.outside += 1
            self.long_ones.append(idle_seconds)
            return
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
        samples, width = self.samples, self.bin_seconds
        if samples >= SAMPLES_MINIMUM and self.outside > OUT_OF_RANGE_SHARE * samples:
            forecast = sum(self.long_ones) / len(self.long_ones)
            return Window(
                (1.0 - FORECAST_MARGIN) * forecast,
                (1.0 + FORECAST_MARGIN) * forecast,
            )
        if samples < SAMPLES_MINIMUM or self.variation() < CV_MINIMUM:
            return Window(0.0, BINS * width)
        head, tail = self._bin(HEAD_PERCENTILE), self._bin(TAIL_PERCENTILE)
        return Window(PREWARM_MARGIN * head * width, KEEP_MARGIN * (tail + 1) * width)

    def _bin(self, percentile: float) -> int:
        """The first bin at which the share of idle times reaches the percentile."""
        wanted, seen = percentile * self.inside, 0
        for index, count in enumerate(self.counts):
            seen += count
            if seen >= wanted:
                return index
        return BINS - 1


class IdleTimes:
    """A histogram for each function, fed by when it became idle and when it was called again."""

    def __init__(self, bin_seconds: float = BIN_SECONDS) -> None:
        self._bin_seconds = bin_seconds
        self._histograms: dict[str, IdleHistogram] = {}
        self._since: dict[str, float] = {}

    def since(self, function: str) -> float | None:
        """When the function became idle; None while it is in use, or where nothing is known."""
        return self._since.get(function)

    def begins(self, function: str, now: float) -> None:
        self._since[function] = now

    def ends(self, function: str, now: float) -> None:
        since = self._since.pop(function, None)
        if since is not None:
            self.histogram(function).add(now - since)

    def histogram(self, function: str) -> IdleHistogram:
        if function not in self._histograms:
            self._histograms[function] = IdleHistogram(self._bin_seconds)
        return self._histograms[function]

    def forget(self, function: str) -> None:
        self._histograms.pop(function, None)
        self._since.pop(function, None)
