"""What the gateways reported, added up: the memory behind each decision. No I/O, no clock.

Bounds: at most `GATEWAYS_MAXIMUM` gateways, functions only as long as they exist, and per function
one moment for each instance up to its maximum, a histogram of idle times and the last few calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from stoker.placement.autoscaler import GATEWAYS_MAXIMUM, Autoscaler
from stoker.placement.errors import StokerError
from stoker.placement.estimate import PROCESS_SECONDS
from stoker.placement.failures import (
    SETTLED_SECONDS,
    holds_back,
    next_failure,
    taken_over,
)
from stoker.placement.histogram import BIN_SECONDS, IdleTimes
from stoker.placement.keepalive import LADDERS_ARRIVALS, Arrivals
from stoker.placement.records import (
    Assignment,
    FailureRecord,
    FunctionDemand,
    FunctionRecord,
    InstanceRecord,
)
from stoker.placement.retention import UNKNOWN_BINS, Retention, retention
from stoker.placement.scale import Demand, needed

# A gateway reports every second; one that was silent this long has no requests in flight.
REPORT_SECONDS = 5.0
# Two ends of requests that lie closer together than this may be one, told twice.
APART_SECONDS = 0.5


@dataclass(slots=True)
class _Memory:
    """What is remembered of one function."""

    retention: Retention
    last_needed: list[float] = field(default_factory=list)
    version: int | None = None
    requested_at: float | None = None
    called_version: int = -1
    failure: FailureRecord | None = None
    start_seconds: float = PROCESS_SECONDS


class DemandLedger:
    """Not thread-safe: its owner's lock guards it. Times are seconds on the caller's clock.

    `bin_seconds` is the width of the bins by which idle times are counted.
    """

    def __init__(self, bin_seconds: float = BIN_SECONDS) -> None:
        self._unknown = Retention(UNKNOWN_BINS * bin_seconds)
        self._idle = IdleTimes(bin_seconds)
        self._calls = Arrivals(LADDERS_ARRIVALS)
        self._autoscaler = Autoscaler()
        self._reports: dict[str, dict[str, tuple[FunctionDemand, float]]] = {}
        self._memories: dict[str, _Memory] = {}
        self._settling: dict[str, tuple[Assignment, float]] = {}

    def begin(
        self,
        existing: Mapping[str, int],
        versions: Mapping[str, int],
        failures: Mapping[str, FailureRecord],
        now: float,
    ) -> None:
        """Start anew: what exists counts as needed just now, for want of better knowledge.

        Scale requests written before are taken as carried out. Failures of the present versions
        still count. What another leader learnt of idle times does not come along.
        """
        for key in self._memories:
            self._forget(key)
        self._reports.clear()
        self._settling.clear()
        self._memories = {
            key: _Memory(self._unknown, [now] * count, versions.get(key))
            for key, count in existing.items()
        }
        for key, failure in failures.items():
            if failure.function_version == versions.get(key) and key in self._memories:
                self._memories[key].failure = taken_over(failure, now)

    def follow(
        self, functions: Mapping[str, FunctionRecord], versions: Mapping[str, int], now: float
    ) -> None:
        """Forget deleted functions and note what was deployed or scaled."""
        for key in [key for key in self._memories if key not in functions]:
            self._forget(key)
            del self._memories[key]
        for key, function in functions.items():
            memory = self._memories.setdefault(key, _Memory(self._unknown))
            version = versions.get(key, 0)
            known = memory.version is not None
            self._autoscaler.follow(key, function.scaling.kpa, deployed=not known)
            if memory.version == version:
                continue
            memory.version = version
            memory.requested_at = None if function.replicas_requested is None else now
            # Deployed or scaled: who wrote it wants it tried again.
            memory.failure = None

    def hear(
        self,
        gateway_id: str,
        demands: Mapping[str, FunctionDemand],
        functions: Mapping[str, FunctionRecord],
        now: float,
    ) -> set[str]:
        """Take a gateway's full report; functions that it does not name have no requests.

        The functions that became busy or idle there are returned.
        """
        before = self._reports.pop(gateway_id, {})
        while len(self._reports) >= GATEWAYS_MAXIMUM:
            self._reports.pop(next(iter(self._reports)))
        self._reports[gateway_id] = {
            key: (demand, now) for key, demand in demands.items() if key in functions
        }
        for key in self._reports[gateway_id]:
            self._remember(gateway_id, functions[key], demands[key], now)
        was_busy = {key for key, (demand, _) in before.items() if _busy(demand)}
        return was_busy ^ {key for key, demand in demands.items() if _busy(demand)}

    def hear_one(
        self, gateway_id: str, function: FunctionRecord, demand: FunctionDemand, now: float
    ) -> None:
        """Take what a gateway says of one function beside its reports."""
        if gateway_id not in self._reports:
            self.hear(gateway_id, {}, {}, now)
        self._reports[gateway_id][function.key] = (demand, now)
        self._remember(gateway_id, function, demand, now)

    def autoscale(self, replicas: Callable[[str], tuple[int, int]], now: float) -> None:
        """Let the averages of the load decide where they are to, every two seconds.

        `replicas` are how many instances of a function serve, and how many there are in all.
        """
        for key in self._autoscaler.followed():
            ready, existing = replicas(key)
            known = self.demand_of(key, now)
            if existing or known.busy:
                self._autoscaler.hear(key, known.in_flight + known.queued, now)
            self._autoscaler.tick(key, ready, existing, now)

    def demand_of(self, key: str, now: float) -> Demand:
        """All that is known of the demand for one function."""
        told = [
            report[key]
            for report in self._reports.values()
            if key in report and now - report[key][1] <= REPORT_SECONDS
        ]
        fresh = [demand for demand, _ in told]
        waiting = (at - demand.waited_seconds for demand, at in told if demand.queued)
        memory = self._memories.get(key) or _Memory(self._unknown)
        failure = memory.failure
        calls, age = self._calls.seen(key, now)
        return Demand(
            in_flight=sum(demand.in_flight for demand in fresh),
            queued=sum(demand.queued for demand in fresh),
            request_seconds=max((demand.request_seconds for demand in fresh), default=0.0),
            prefill_seconds=max((demand.prefill_seconds for demand in fresh), default=0.0),
            last_needed=tuple(memory.last_needed),
            requested_at=memory.requested_at,
            called_since=memory.called_version >= (memory.version or 0),
            not_before=_not_before(failure),
            avoid=frozenset({failure.node_id}) if failure else frozenset(),
            retention=memory.retention,
            calls=calls,
            calls_since=now - age if calls else -math.inf,
            start_seconds=memory.start_seconds,
            queued_tokens=sum(demand.queued_tokens for demand in fresh),
            autoscaled=self._autoscaler.decision(key),
            working=frozenset[str]().union(*(demand.working for demand in fresh)),
            waiting_since=min(waiting, default=None),
        )

    def failed(self, instance: InstanceRecord, error: StokerError, now: float) -> bool:
        """Remember a failed start and say whether it is news."""
        memory = self._memories.get(instance.function)
        last = memory.failure if memory else None
        if memory is None or (last is not None and last.instance_id == instance.instance_id):
            return False
        memory.failure = next_failure(last, memory.version or 0, instance, error, now)
        return True

    def serves(self, assignment: Assignment, instance: InstanceRecord, now: float) -> None:
        """Note that the instance serves; `settle` says later that its start proved good."""
        self._settling.setdefault(instance.instance_id, (assignment, now))
        memory = self._memories.get(instance.function)
        if memory is not None and instance.init_seconds > 0:
            memory.start_seconds = instance.init_seconds

    def ended(self, instance_id: str) -> None:
        """Note that the instance serves no longer."""
        self._settling.pop(instance_id, None)

    def settle(self, now: float) -> None:
        """Forget the failures before each start that proved good."""
        for instance_id, (assignment, since) in tuple(self._settling.items()):
            if now - since >= SETTLED_SECONDS:
                self.succeeded(assignment)
                del self._settling[instance_id]

    def succeeded(self, assignment: Assignment) -> None:
        """Forget the failures of the function that lie before this start."""
        memory = self._memories.get(assignment.function)
        if memory and memory.failure and memory.failure.failed_at <= assignment.created_at:
            memory.failure = None

    def failure_of(self, key: str, now: float) -> FailureRecord | None:
        """The failure that still holds new starts of the function back."""
        memory = self._memories.get(key)
        failure = memory.failure if memory else None
        return failure if failure and holds_back(failure, now) else None

    def given_up(self, key: str) -> bool:
        """Whether only a deploy or a scale request starts the function again."""
        memory = self._memories.get(key)
        return bool(memory and memory.failure and memory.failure.retry_at is None)

    def failures(self) -> dict[str, FailureRecord]:
        """The failures of every function that has some."""
        return {key: m.failure for key, m in self._memories.items() if m.failure}

    def _remember(
        self, gateway_id: str, function: FunctionRecord, demand: FunctionDemand, now: float
    ) -> None:
        memory = self._memories.setdefault(function.key, _Memory(self._unknown))
        memory.called_version = max(memory.called_version, demand.called_version)
        known = self.demand_of(function.key, now)
        self._autoscaler.hear(function.key, known.in_flight + known.queued, now)
        self._autoscaler.count(function.key, gateway_id, demand.requests, now)
        total = needed(function, known)
        moments = [now] * total
        if not moments and math.isfinite(demand.idle_seconds):
            moments = [now - demand.idle_seconds]
        for index, moment in enumerate(moments):
            if index < len(memory.last_needed):
                memory.last_needed[index] = max(memory.last_needed[index], moment)
            else:
                memory.last_needed.append(moment)
        if total:
            self._note_use(function.key, now)
        elif moments:
            self._note_idle(function.key, memory, memory.last_needed[0])

    def _note_use(self, key: str, now: float) -> None:
        """A request is in flight or waits."""
        if self._idle.since(key) is not None:
            self._idle.ends(key, now)
        elif (last := self._calls.last(key)) is not None and now - last < APART_SECONDS:
            return
        self._calls.add(key, now)

    def _note_idle(self, key: str, memory: _Memory, ended_at: float) -> None:
        """Nothing is under way; the last request ended at `ended_at`."""
        since = self._idle.since(key)
        if since is not None and ended_at - since < APART_SECONDS:
            return
        if since is not None:
            # It came and went between two reports.
            self._idle.ends(key, ended_at)
            self._calls.add(key, ended_at)
        self._idle.begins(key, ended_at)
        calls, age = self._calls.seen(key, ended_at)
        histogram = self._idle.histogram(key)
        memory.retention = retention(histogram, calls, age, memory.start_seconds)

    def _forget(self, key: str) -> None:
        self._idle.forget(key)
        self._calls.forget(key)
        self._autoscaler.forget(key)


def _busy(demand: FunctionDemand) -> bool:
    return demand.in_flight + demand.queued > 0


def _not_before(failure: FailureRecord | None) -> float:
    if failure is None:
        return -math.inf
    return math.inf if failure.retry_at is None else failure.retry_at
