"""What a simulation measured, and its figures. Seconds are virtual."""

from __future__ import annotations

import math
import statistics
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

PERCENTILES = (50, 95, 99)


@dataclass(slots=True)
class Outcome:
    """`start_seconds` are the requests' start-ups: waiting to run, and every pause after that.

    A request that was given up counts with the time until then, in `timeouts` as well.
    """

    start_seconds: array[float] = field(default_factory=lambda: array("d"))
    tiers: Counter[str] = field(default_factory=Counter)
    functions: Counter[str] = field(default_factory=Counter)
    cold_seconds: dict[str, float] = field(default_factory=dict)
    timeouts: int = 0
    unfinished: int = 0
    starts: int = 0
    stops: int = 0
    migrations: int = 0
    preemptions: int = 0
    failures: int = 0
    prefetches: int = 0
    shortages: int = 0
    waits_chosen: int = 0
    decisions: int = 0
    instance_seconds: float = 0.0
    busy_seconds: float = 0.0
    end: float = 0.0

    def record(self, function: str, start_seconds: float, tier: str) -> None:
        self.start_seconds.append(start_seconds)
        self.tiers[tier] += 1
        self.functions[function] += 1
        if tier != "warm":
            waited = self.cold_seconds.get(function, 0.0)
            self.cold_seconds[function] = waited + start_seconds

    def figures(self) -> dict[str, Any]:
        """The row of a table, and what stands behind it."""
        ordered = sorted(self.start_seconds)
        requests = len(ordered)
        found: dict[str, Any] = {"requests": requests}
        for percent in PERCENTILES:
            found[f"start_seconds_p{percent}"] = percentile(ordered, percent)
        found["start_seconds_mean"] = statistics.fmean(ordered) if ordered else math.nan
        found["warm_share"] = self.tiers["warm"] / requests if requests else math.nan
        for tier in ("warm", "busy", "dram", "ssd", "peer", "remote"):
            found[f"from_{tier}"] = self.tiers[tier]
        for name in (
            "starts",
            "stops",
            "migrations",
            "preemptions",
            "timeouts",
            "unfinished",
            "failures",
            "prefetches",
            "shortages",
            "waits_chosen",
            "decisions",
        ):
            found[name] = getattr(self, name)
        found["instance_hours"] = self.instance_seconds / 3600.0
        found["busy_hours"] = self.busy_seconds / 3600.0
        return found


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The least of the ordered values that so many percent of them do not exceed."""
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(percent / 100.0 * len(ordered)) - 1)]
