"""How many instances a function should have. Pure: no clock, no I/O.

What may be *started* and what may be *kept* are two numbers. Demand, the minimum and a client's
scale request start instances; recent demand only keeps those that exist. So a failed or outdated
instance is not started again merely because somebody called the function a minute ago.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from stoker.placement.records import FunctionRecord


@dataclass(frozen=True, slots=True)
class Demand:
    """What all gateways together want of one function. Times are seconds on the caller's clock.

    `last_needed[k]` is when demand last needed more than k instances, so `last_needed[0]` is when
    the function was last in use. `requested_at` is when `replicas_requested` was last written.
    Nothing starts before `not_before`; nodes in `avoid` failed it last and come last.
    """

    in_flight: int = 0
    queued: int = 0
    last_needed: tuple[float, ...] = ()
    requested_at: float | None = None
    not_before: float = -math.inf
    avoid: frozenset[str] = frozenset()

    @property
    def busy(self) -> bool:
        return self.in_flight + self.queued > 0

    @property
    def last_active(self) -> float:
        return self.last_needed[0] if self.last_needed else -math.inf


def needed(function: FunctionRecord, demand: Demand) -> int:
    """Instances that hold every request in flight or queued, at most the maximum."""
    requests = demand.in_flight + demand.queued
    instances = math.ceil(requests / max(1, function.scaling.concurrency))
    return min(instances, function.scaling.maximum)


def startable(function: FunctionRecord, demand: Demand, now: float) -> int:
    """The number of instances up to which new ones are started."""
    floor = _floor(function, demand, now)
    return min(max(needed(function, demand), floor), function.scaling.maximum)


def desired(function: FunctionRecord, demand: Demand, existing: int, now: float) -> int:
    """How many instances there should be, when `existing` are serving or starting."""
    target = startable(function, demand, now)
    return max(target, min(existing, _kept(function, demand, now), function.scaling.maximum))


def _floor(function: FunctionRecord, demand: Demand, now: float) -> int:
    scaling, requested = function.scaling, function.replicas_requested
    if requested is None or demand.requested_at is None:
        return scaling.minimum
    if requested == 0:
        # Zero holds even below the minimum, until the function is called again.
        return scaling.minimum if demand.last_active > demand.requested_at else 0
    if now - demand.requested_at < scaling.idle_seconds:
        return max(scaling.minimum, min(requested, scaling.maximum))
    return scaling.minimum


def _kept(function: FunctionRecord, demand: Demand, now: float) -> int:
    requested, requested_at = function.replicas_requested, demand.requested_at
    kept = 0
    for index, moment in enumerate(demand.last_needed):
        overruled = (
            requested is not None
            and requested_at is not None
            and index >= requested
            and moment <= requested_at
        )
        if now - moment < function.scaling.idle_seconds and not overruled:
            kept = index + 1
    return kept
