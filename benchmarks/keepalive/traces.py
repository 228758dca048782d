"""Requests for the replay: W1, a zoo of models, synthetic or with the rates of a real trace.

Documented of W1: 80 to 100 models; the most popular has 30 % of all requests, the first ten 87 %;
arrivals per model are Gamma with a coefficient of variation of 3; the busiest 10 minutes have 20
times the mean; an execution takes 23 s (median), 100 s (99th percentile).
"""

from __future__ import annotations

import csv
import gzip
import math
import random
import statistics
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path

from stoker.placement.replay import Request

WINDOW_SECONDS = 600.0
DAY_SECONDS = 86400.0
VARIATION = 3.0
SHAPE = 1.0 / VARIATION**2
PEAK_OVER_MEAN = 20.0
EXECUTION_SECONDS_MEDIAN = 23.0
EXECUTION_SECONDS_P99 = 100.0
EXECUTION_SIGMA = math.log(EXECUTION_SECONDS_P99 / EXECUTION_SECONDS_MEDIAN) / 2.326
# (rank + shift) ** -exponent gives 90 models the documented shares: 30 % and 87 %.
POPULARITY_SHIFT = 3.52
POPULARITY_EXPONENT = 2.61
# How much of a window's load the next one inherits (synthetic only).
INERTIA = 0.9


# A function's rate in each window of 10 minutes, in any unit.
Load = Sequence[float]


def shares(count: int) -> list[float]:
    """Each model's share of all requests, the most popular first."""
    weights = [(rank + POPULARITY_SHIFT) ** -POPULARITY_EXPONENT for rank in range(1, count + 1)]
    return [weight / sum(weights) for weight in weights]


def synthetic(count: int, days: float, seed: int) -> list[Load]:
    """All functions follow one load of the whole zoo, whose peak is 20 times its mean."""
    draw = random.Random(f"load {seed}")
    windows = max(1, round(days * DAY_SECONDS / WINDOW_SECONDS))
    steps, level = [], draw.gauss(0.0, 1.0)
    for _ in range(windows):
        steps.append(level)
        level = INERTIA * level + math.sqrt(1.0 - INERTIA**2) * draw.gauss(0.0, 1.0)
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        rates = [math.exp(middle * step) for step in steps]
        low, high = (middle, high) if _peak(rates) < PEAK_OVER_MEAN else (low, middle)
    rates = [math.exp(low * step) for step in steps]
    return [rates] * count


def recorded(path: Path, count: int, days: float, seed: int) -> list[Load]:
    """The rates of `count` clients of a ServeGen rate file, busiest first.

    The clients are drawn from those whose record is as long as the replay. Their own variations
    belong to hundreds of requests a second, of which a zoo of rarely called models keeps one in
    many thousands; so arrivals vary as W1 says.
    """
    windows = max(1, round(days * DAY_SECONDS / WINDOW_SECONDS))
    found: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    last: Counter[str] = Counter()
    with gzip.open(path, "rt", newline="") as lines:
        for row in csv.DictReader(lines):
            window = int(float(row["t_s"]) // WINDOW_SECONDS)
            last[row["model"]] = max(last[row["model"]], window)
            if window < windows:
                found[row["model"], row["client"]][window] = float(row["rate_rps"])
    clients = sorted(key for key in found if last[key[0]] >= windows - 1)
    if len(clients) < count:
        raise SystemExit(f"{path} has {len(clients)} clients for {days} days, not {count}")
    chosen = random.Random(f"clients {seed}").sample(clients, count)
    loads = [[found[key].get(window, 0.0) for window in range(windows)] for key in chosen]
    return sorted(loads, key=sum, reverse=True)


def requests(
    functions: Sequence[str], loads: Sequence[Load], per_minute: float, seed: int
) -> list[Request]:
    """The requests of all functions, the most popular first, in order of arrival."""
    draw = random.Random(f"requests {seed}")
    found = []
    for function, load, share in zip(functions, loads, shares(len(functions)), strict=True):
        minutes = len(load) * WINDOW_SECONDS / 60.0
        for at in _arrivals(load, share * per_minute * minutes, draw):
            mu = math.log(EXECUTION_SECONDS_MEDIAN)
            found.append(Request(at, function, draw.lognormvariate(mu, EXECUTION_SIGMA)))
    return sorted(found, key=lambda request: (request.at, request.function))


def _arrivals(load: Load, expected: float, draw: random.Random) -> list[float]:
    """A Gamma renewal process, on a clock that runs as fast as the load is high."""
    total = sum(load)
    passed = [0.0, *accumulate(rate * expected / total for rate in load)]
    found = []
    # The first interval began at any time before the replay.
    at, scale = 0.0, draw.random()
    while True:
        at += scale * draw.gammavariate(SHAPE, 1.0 / SHAPE)
        scale = 1.0
        if at >= passed[-1]:
            return found
        window = bisect(passed, at) - 1
        part = (at - passed[window]) / (passed[window + 1] - passed[window])
        found.append((window + part) * WINDOW_SECONDS)


def describe(found: Sequence[Request], end: float) -> dict[str, float]:
    """The statistics by which W1 is documented, as these requests have them."""
    per_function = Counter(request.function for request in found)
    ranked = [count for _, count in per_function.most_common()]
    windows = Counter(int(request.at // WINDOW_SECONDS) for request in found)
    seconds = sorted(request.seconds for request in found)
    return {
        "requests": len(found),
        "functions_called": len(per_function),
        "top_1_share": ranked[0] / len(found),
        "top_10_share": sum(ranked[:10]) / len(found),
        "peak_10_minutes_over_mean": max(windows.values()) * end / WINDOW_SECONDS / len(found),
        "interval_variation_median": _variation(found),
        "execution_seconds_p50": statistics.median(seconds),
        "execution_seconds_p99": seconds[int(0.99 * (len(seconds) - 1))],
    }


def _variation(found: Sequence[Request]) -> float:
    times: dict[str, list[float]] = defaultdict(list)
    for request in found:
        times[request.function].append(request.at)
    variations = []
    for moments in times.values():
        gaps = [later - earlier for earlier, later in pairwise(moments)]
        if len(gaps) >= 20 and statistics.mean(gaps) > 0:
            variations.append(statistics.pstdev(gaps) / statistics.mean(gaps))
    return statistics.median(variations) if variations else math.nan


def _peak(rates: Sequence[float]) -> float:
    return max(rates) * len(rates) / sum(rates)
