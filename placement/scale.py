"""How many instances a function should have. Pure: no clock, no I/O.

What may be *started* and what may be *kept* are two numbers. Demand, the minimum, a client's scale
request and a request that is due start instances; recent demand only keeps those that exist. So a
failed or outdated instance is not started again merely because somebody called the function a
minute ago. What the user said of idle instances outranks what was learnt.

Three ways to count: the requests of this moment; averages of the load (`kpa`), alone or beside
those; and for models bands of use (`llm`), where a start takes long: what is loading counts as
there, prompts that wait count by their tokens, and instances go one at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from stoker.placement.autoscaler import Autoscaled
from stoker.placement.estimate import PROCESS_SECONDS
from stoker.placement.keepalive import ageing_rate
from stoker.placement.kpa import GRACE_SECONDS
from stoker.placement.records import FunctionRecord
from stoker.placement.retention import IDLE_SECONDS_DEFAULT, UNKNOWN, Retention

# The bands of use of `llm`: above the one an instance is added, below the other one may go. Few
# requests per instance leave no room between them.
BAND_HIGH, BAND_LOW = 0.8, 0.5
BAND_CONCURRENCY_MINIMUM = 4
# Tokens of prompts per second that an instance takes, where none were measured.
PROMPT_TOKENS_PER_SECOND = 1000.0


@dataclass(frozen=True, slots=True)
class Demand:
    """What all gateways together want of one function. Times are seconds on the caller's clock.

    `last_needed[k]` is when demand last needed more than k instances, so `last_needed[0]` is when
    the function was last in use. `requested_at` is when `replicas_requested` was last written, and
    `called_since` whether somebody called who knew of it.
    Nothing starts before `not_before`; nodes in `avoid` failed it last and come last. `retention`
    is what its idle times speak for; the last `calls`, since `calls_since`, how often it is called.
    One request takes an instance `request_seconds`, `prefill_seconds` of it until its first token;
    0 as long as that is not known.
    `queued_tokens` are the prompts' of what waits, 0 if unknown; `autoscaled` is what averages say.
    `working` are the instances that have requests.
    Since `waiting_since` the first request waits, if one does.
    """

    in_flight: int = 0
    queued: int = 0
    last_needed: tuple[float, ...] = ()
    requested_at: float | None = None
    called_since: bool = False
    not_before: float = -math.inf
    avoid: frozenset[str] = frozenset()
    retention: Retention = UNKNOWN
    calls: int = 0
    calls_since: float = -math.inf
    request_seconds: float = 0.0
    prefill_seconds: float = 0.0
    start_seconds: float = PROCESS_SECONDS
    queued_tokens: int = 0
    autoscaled: Autoscaled | None = None
    working: frozenset[str] = frozenset()
    waiting_since: float | None = None

    @property
    def busy(self) -> bool:
        return self.in_flight + self.queued > 0

    @property
    def last_active(self) -> float:
        return self.last_needed[0] if self.last_needed else -math.inf

    def rate(self, now: float) -> float:
        """Calls per second to be expected, from how often and how recently there were some."""
        return ageing_rate(self.calls, now - self.calls_since, now - self.last_active)


def needed(function: FunctionRecord, demand: Demand) -> int:
    """Instances that hold every request in flight or queued, at most the maximum."""
    requests = demand.in_flight + demand.queued
    instances = math.ceil(requests / max(1, function.scaling.concurrency))
    return min(instances, function.scaling.maximum)


def called_for(function: FunctionRecord, demand: Demand, now: float) -> int:
    """The instances that somebody asked for: by requests, the minimum or a scale request."""
    if function.scaling.kpa is not None:
        by_load = _by_averages(function, demand)
    elif function.scaling.llm:
        by_load = band(function, demand)[0]
    else:
        by_load = needed(function, demand)
    return min(max(by_load, _floor(function, demand, now)), function.scaling.maximum)


def _by_averages(function: FunctionRecord, demand: Demand) -> int:
    averaged = (demand.autoscaled.desired if demand.autoscaled else None) or 0
    if _by_averages_alone(function):
        return max(averaged, int(demand.busy))
    # Of the last instance its idle time decides, and of all of them a client who said how many.
    stated = demand.requested_at is not None and not demand.called_since
    return max(0 if stated or averaged == 1 else averaged, needed(function, demand))


def startable(
    function: FunctionRecord, demand: Demand, now: float, lead_seconds: float = 0.0
) -> int:
    """The number of instances up to which new ones are started; a start takes `lead_seconds`."""
    return max(called_for(function, demand, now), _due(function, demand, now, lead_seconds))


def desired(
    function: FunctionRecord,
    demand: Demand,
    existing: int,
    now: float,
    lead_seconds: float = 0.0,
) -> int:
    """How many instances there should be, when `existing` are serving or starting."""
    target = startable(function, demand, now, lead_seconds)
    kept = min(existing, _kept(function, demand, existing, now), function.scaling.maximum)
    if function.scaling.llm:
        return _banded(function, demand, existing, max(target, kept))
    return max(target, kept)


def band(function: FunctionRecord, demand: Demand) -> tuple[int, int]:
    """The fewest and the most instances that the load of a model leaves in their bands of use.

    Prompts that wait are worth a start if working them off takes longer than that.
    """
    concurrency = function.scaling.concurrency
    roomy = concurrency > BAND_CONCURRENCY_MINIMUM
    high = concurrency * (BAND_HIGH if roomy else 1.0)
    low = concurrency * (BAND_LOW if roomy else 1.0)
    if demand.queued_tokens:
        start_tokens = PROMPT_TOKENS_PER_SECOND * demand.start_seconds
        load = demand.in_flight + high * demand.queued_tokens / start_tokens
    else:
        load = demand.in_flight + demand.queued
    fewest, most = math.ceil(load / high), math.ceil(load / low)
    return max(fewest, int(demand.busy)), max(most, int(demand.busy))


def _banded(function: FunctionRecord, demand: Demand, existing: int, target: int) -> int:
    """Up to the middle of the band at once, down by one, and only from above the band."""
    scaling, (fewest, most) = function.scaling, band(function, demand)
    stated = demand.requested_at is not None and not demand.called_since
    if existing < fewest:
        return max(target, min((fewest + most) // 2, scaling.maximum))
    if existing <= target or stated:
        return target
    return min(max(target, min(existing, most), existing - 1), scaling.maximum)


def _floor(function: FunctionRecord, demand: Demand, now: float) -> int:
    scaling, requested = function.scaling, function.replicas_requested
    if requested is None or demand.requested_at is None:
        return scaling.minimum
    if requested == 0:
        # Zero holds even below the minimum, until the function is called again.
        return scaling.minimum if demand.called_since else 0
    held_seconds = IDLE_SECONDS_DEFAULT if scaling.idle_seconds is None else scaling.idle_seconds
    if now - demand.requested_at < held_seconds:
        return max(scaling.minimum, min(requested, scaling.maximum))
    return scaling.minimum


def _due(function: FunctionRecord, demand: Demand, now: float, lead_seconds: float) -> int:
    """1 if an instance should be there for a request that its idle times let expect."""
    stated = demand.requested_at is not None and not demand.called_since
    # A client's word, on idle instances or how many there should be, is not second-guessed.
    if function.scaling.idle_seconds is not None or _by_averages_alone(function) or stated:
        return 0
    return int(demand.retention.expects(now - demand.last_active, lead_seconds))


def _kept(function: FunctionRecord, demand: Demand, existing: int, now: float) -> int:
    requested, requested_at = function.replicas_requested, demand.requested_at
    if _by_averages_alone(function):
        return _kept_by_averages(function, demand, existing, now)
    keep_seconds = function.scaling.idle_seconds
    if keep_seconds is None:
        keep_seconds = demand.retention.keep_seconds
    kept = 0
    for index, moment in enumerate(demand.last_needed):
        overruled = (
            requested is not None
            and requested_at is not None
            and index >= requested
            and (moment <= requested_at or not demand.called_since)
        )
        if now - moment < keep_seconds and not overruled:
            kept = index + 1
    return kept


def _by_averages_alone(function: FunctionRecord) -> bool:
    return function.scaling.kpa is not None and function.scaling.kpa.alone


def _kept_by_averages(function: FunctionRecord, demand: Demand, existing: int, now: float) -> int:
    """Knative's grace: the last instance stays for a while after the load called for none."""
    if function.replicas_requested == 0 and not demand.called_since:
        return 0
    decision = demand.autoscaled
    if decision is None or decision.desired is None:
        return existing  # No word for a whole window is no decision.
    if decision.inactive_since is None:
        return 0
    grace_seconds = max(GRACE_SECONDS, function.scaling.idle_seconds or 0.0)
    return int(now - decision.inactive_since < grace_seconds)
