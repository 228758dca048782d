"""What the gateways reported, added up: the memory behind each decision. No I/O, no clock.

Bounds: at most `GATEWAYS_MAXIMUM` gateways, functions only as long as they exist, and per function
one moment for each instance up to its maximum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from stoker.placement.errors import StokerError
from stoker.placement.records import FunctionDemand, FunctionRecord
from stoker.placement.scale import Demand, needed

# A gateway reports every second; one that was silent this long has no requests in flight.
REPORT_SECONDS = 5.0
GATEWAYS_MAXIMUM = 256
# A start that failed is tried again after a pause that doubles from the first to the last.
RETRY_SECONDS_FIRST = 1.0
RETRY_SECONDS_LAST = 16.0


@dataclass(frozen=True, slots=True)
class Failure:
    """The last failed start of a function. `count` failed in a row."""

    instance_id: str
    node_id: str
    generation: int
    error: StokerError
    not_before: float
    count: int


@dataclass(slots=True)
class _Memory:
    """What is remembered of one function."""

    last_needed: list[float] = field(default_factory=list)
    version: int | None = None
    requested_at: float | None = None
    failure: Failure | None = None


class DemandLedger:
    """Not thread-safe: its owner's lock guards it. Times are seconds on the caller's clock."""

    def __init__(self) -> None:
        self._reports: dict[str, dict[str, tuple[FunctionDemand, float]]] = {}
        self._memories: dict[str, _Memory] = {}

    def begin(self, existing: Mapping[str, int], versions: Mapping[str, int], now: float) -> None:
        """Start anew: what exists counts as needed just now, for want of better knowledge.

        Scale requests written before are taken as carried out.
        """
        self._reports.clear()
        self._memories = {
            key: _Memory(last_needed=[now] * count, version=versions.get(key))
            for key, count in existing.items()
        }

    def follow(
        self, functions: Mapping[str, FunctionRecord], versions: Mapping[str, int], now: float
    ) -> None:
        """Forget deleted functions and note when a scale request was written."""
        for key in [key for key in self._memories if key not in functions]:
            del self._memories[key]
        for key, function in functions.items():
            memory = self._memories.setdefault(key, _Memory())
            version = versions.get(key, 0)
            if memory.version == version:
                continue
            memory.version = version
            memory.requested_at = None if function.replicas_requested is None else now
            if memory.failure and memory.failure.generation != function.generation:
                memory.failure = None

    def hear(
        self,
        gateway_id: str,
        demands: Mapping[str, FunctionDemand],
        functions: Mapping[str, FunctionRecord],
        now: float,
    ) -> None:
        """Take a gateway's full report; functions that it does not name have no requests."""
        self._reports.pop(gateway_id, None)
        while len(self._reports) >= GATEWAYS_MAXIMUM:
            self._reports.pop(next(iter(self._reports)))
        self._reports[gateway_id] = {
            key: (demand, now) for key, demand in demands.items() if key in functions
        }
        for key in self._reports[gateway_id]:
            self._remember(functions[key], demands[key], now)

    def hear_one(
        self, gateway_id: str, function: FunctionRecord, demand: FunctionDemand, now: float
    ) -> None:
        """Take what a gateway says of one function beside its reports."""
        if gateway_id not in self._reports:
            self.hear(gateway_id, {}, {}, now)
        self._reports[gateway_id][function.key] = (demand, now)
        self._remember(function, demand, now)

    def demand_of(self, key: str, now: float) -> Demand:
        """All that is known of the demand for one function."""
        fresh = [
            report[key][0]
            for report in self._reports.values()
            if key in report and now - report[key][1] <= REPORT_SECONDS
        ]
        memory = self._memories.get(key) or _Memory()
        failure = memory.failure
        return Demand(
            in_flight=sum(demand.in_flight for demand in fresh),
            queued=sum(demand.queued for demand in fresh),
            last_needed=tuple(memory.last_needed),
            requested_at=memory.requested_at,
            not_before=failure.not_before if failure else -math.inf,
            avoid=frozenset({failure.node_id}) if failure else frozenset(),
        )

    def failed(
        self,
        function: FunctionRecord,
        instance_id: str,
        node_id: str,
        error: StokerError,
        now: float,
    ) -> bool:
        """Remember a failed start and say whether it is news."""
        memory = self._memories.setdefault(function.key, _Memory())
        last = memory.failure
        if last is not None and last.instance_id == instance_id:
            return False
        count = last.count + 1 if last else 1
        pause = min(RETRY_SECONDS_FIRST * 2.0 ** min(count - 1, 16), RETRY_SECONDS_LAST)
        memory.failure = Failure(
            instance_id, node_id, function.generation, error, now + pause, count
        )
        return True

    def succeeded(self, keys: Iterable[str]) -> None:
        """Forget the failures of functions that serve."""
        for key in keys:
            memory = self._memories.get(key)
            if memory is not None:
                memory.failure = None

    def failure_of(self, key: str, now: float) -> Failure | None:
        """The failure that still holds new starts of the function back."""
        memory = self._memories.get(key)
        failure = memory.failure if memory else None
        return failure if failure and now < failure.not_before else None

    def _remember(self, function: FunctionRecord, demand: FunctionDemand, now: float) -> None:
        memory = self._memories.setdefault(function.key, _Memory())
        total = needed(function, self.demand_of(function.key, now))
        moments = [now] * total
        if not moments and math.isfinite(demand.idle_seconds):
            moments = [now - demand.idle_seconds]
        for index, moment in enumerate(moments):
            if index < len(memory.last_needed):
                memory.last_needed[index] = max(memory.last_needed[index], moment)
            else:
                memory.last_needed.append(moment)
