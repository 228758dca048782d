"""A cluster in virtual time: the production code for scale and placement over simulated nodes.

    request ──> free slot of an instance ──> runs ──> the next that waits, or idle
        └─ none: waits; scale says how many instances, the planner where ──> load ──> runs

Deterministic: the same arguments give the same outcome. A request's start-up is the time until it
runs for the first time, and every pause after that; how long it runs is given. What an instance
runs at the same time does not slow it down.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from stoker.placement.demand import DemandLedger
from stoker.placement.estimate import resume_seconds
from stoker.placement.kpa import TICK_SECONDS
from stoker.placement.records import FunctionDemand, InstanceRecord
from stoker.placement.scale import Demand, desired, startable
from stoker.placement.simulate_instances import Lifecycle
from stoker.placement.simulate_metrics import Outcome
from stoker.placement.simulate_parts import Function, Instance, Request
from stoker.placement.simulate_planner import FleetPlanner
from stoker.placement.simulate_prefetch import Prefetches
from stoker.placement.simulate_world import World

# How many functions that found no place are tried again when one may have become free.
RETRIES_MAXIMUM = 8
# A little after the moment at which an idle time has passed.
LATER_SECONDS = 1e-6
# Who waits for a busy instance longer than was expected asks again no sooner.
PATIENCE_SECONDS = 0.05
# A gateway reports what is under way so often.
REPORT_SECONDS = 1.0
# What nodes bring ahead is decided so often.
PREFETCH_SECONDS = 1.0


class Simulation(Lifecycle):
    """`failures` are (when, node id, for how many seconds). Requests wait for `timeout_seconds`."""

    def __init__(
        self,
        world: World,
        functions: Iterable[Function],
        planner: FleetPlanner,
        *,
        failures: Iterable[tuple[float, str, float]] = (),
        timeout_seconds: float = math.inf,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._ledger = DemandLedger()
        planner.ask_demand_of(lambda key: self._ledger.demand_of(key, self._now))
        self._short: dict[str, Function] = {}
        self._functions = tuple(functions)
        super().__init__(world, planner)
        self._arriving = True
        records = {function.record.key: function.record for function in self._functions}
        self._ledger.follow(records, dict.fromkeys(records, 0), 0.0)
        self._by_key = {function.record.key: function for function in self._functions}
        for function in self._functions:
            planner.put(function.record, 0.0)
            if function.record.scaling.kpa is not None:
                self._at(0.0, self._tick, function)
            elif function.record.scaling.minimum:
                self._at(0.0, self._scale, function)
        if self._prefetches is not None:
            self._at(0.0, self._renew_prefetches, self._prefetches)
        for at, node_id, seconds in failures:
            self._at(at, self._fail, (world.nodes[node_id], seconds))

    def run(self, requests: Iterable[Request], end: float = math.inf) -> Outcome:
        """Let the requests arrive, in order, and everything happen until `end`, or all is done."""
        events = self._events
        for request in requests:
            while events and events[0][0] <= request.arrived_at:
                self._step()
            self._now = request.arrived_at
            self._arrive(request)
        self._arriving = False
        while events and events[0][0] <= end:
            self._step()
        self._now = end if end < math.inf else self._now
        for instance in self._instances.values():
            self.outcome.instance_seconds += self._now - instance.placed_at
            self.outcome.unfinished += len(instance.running)
        for function in self._functions:
            self.outcome.unfinished += len(function.queue)
        self.outcome.end = self._now
        return self.outcome

    # Requests.

    def _arrive(self, request: Request) -> None:
        function, now = request.function, self._now
        if not function.queue:
            instance = _free_slot(function)
            if instance is not None:
                woken = function.in_flight == 0
                self._begin(request, instance)
                if woken or now - function.heard_at >= REPORT_SECONDS:
                    self._hear(function)
                return
        function.queue.append(request)
        self._planner.waits(function, now)
        if self._timeout_seconds < math.inf:
            self._at(now + self._timeout_seconds, self._give_up, request)
        self._scale(function)

    def _begin(self, request: Request, instance: Instance, pause_seconds: float = 0.0) -> None:
        """Run it from now on, after a pause in which its tokens are computed anew."""
        function, now = request.function, self._now
        request.waited += now - request.queued_at + pause_seconds
        if not request.tier:
            if request.waited <= 0.0:
                request.tier = "warm"
            else:
                fresh = instance.ready_at > request.arrived_at
                request.tier = instance.tier if fresh else "busy"
        request.begun_at = now + pause_seconds
        request.epoch += 1
        function.in_flight += 1
        instance.running[request.number] = request
        done_at = request.begun_at + request.left_seconds
        self._at(done_at, self._done, (instance, request, request.epoch))
        self._planner.works(instance, now)

    def _done(self, what: tuple[Instance, Request, int]) -> None:
        instance, request, epoch = what
        if request.epoch != epoch:
            return
        function = request.function
        if function.in_flight > 1 and not function.queue:
            self._hear(function)  # So many were needed until now.
        del instance.running[request.number]
        function.in_flight -= 1
        ran = request.left_seconds
        self._planner.ran(function, ran)
        self.outcome.busy_seconds += ran
        self.outcome.record(function.record.key, request.waited, request.tier)
        if instance.heir is not None:
            if not instance.running:
                self._end(instance)
        else:
            self._take_waiting(instance)
        if not instance.running:
            self._retry_short()

    def _give_up(self, request: Request) -> None:
        """The time that a request waits for its first start is over."""
        queue = request.function.queue
        if request.tier or request not in queue:
            return
        queue.remove(request)
        self.outcome.timeouts += 1
        waited = self._now - request.arrived_at
        self.outcome.record(request.function.record.key, waited, "timeout")

    def _take_waiting(self, instance: Instance) -> None:
        """Give its free slots to those who wait; idle otherwise."""
        function = instance.function
        concurrency = function.record.scaling.concurrency
        while function.queue and len(instance.running) < concurrency:
            request = function.queue.popleft()
            again = request.moved + request.preempted > 0
            pause = resume_seconds(request.tokens(self._now)) if again else 0.0
            self._begin(request, instance, pause)
        if not instance.running:
            self._planner.works(instance, self._now)
            if function.in_flight == 0 and not function.queue:
                function.idle_since = self._now
            self._look_later(function, self._hear(function), at_once=True)

    def _serves(self, instance: Instance, record: InstanceRecord) -> None:
        self._planner.put(record, self._now)
        self._ledger.serves(instance.assignment, record, self._now)

    def _demand_of(self, key: str, now: float) -> Demand:
        return self._ledger.demand_of(key, now)

    def _renew_prefetches(self, prefetches: Prefetches) -> None:
        prefetches.renew(self._now)
        if self._arriving:
            self._at(self._now + PREFETCH_SECONDS, self._renew_prefetches, prefetches)

    # Scale.

    def _hear(self, function: Function) -> Demand:
        now, queued = self._now, len(function.queue)
        function.heard_at = now
        busy = function.in_flight or queued
        idle_seconds = 0.0 if busy else now - function.idle_since
        told = FunctionDemand(function.in_flight, queued, idle_seconds, 0)
        self._ledger.hear_one("gateway", function.record, told, now)
        return self._ledger.demand_of(function.record.key, now)

    def _scale(self, function: Function) -> None:
        """Start what the demand calls for; what finds no place is tried again."""
        # Who was put aside may find another instance idle.
        while function.queue and (instance := _free_slot(function)) is not None:
            self._take_waiting(instance)
        demand = self._hear(function)
        if function.record.scaling.kpa is not None:
            self._ledger.autoscale(self._replicas, self._now)
            demand = self._ledger.demand_of(function.record.key, self._now)
        lead_seconds = function.start_seconds if demand.retention.due else 0.0
        wanted = startable(function.record, demand, self._now, lead_seconds)
        if self._prefetches and function.record.checkpoint is not None:
            self._prefetches.tell(function.record.checkpoint.digest, self._now)
        # Those that only end what they run take nobody who waits.
        while function.existing < wanted or (function.queue and not function.instances):
            self.outcome.decisions += 1
            chosen = self._planner.choose(function, self._now)
            if chosen is None:
                self.outcome.shortages += 1
                self._short[function.record.key] = function
                return
            if chosen.instance_id:
                self.outcome.waits_chosen += 1
                look_at = self._now + max(chosen.stages.room, PATIENCE_SECONDS)
                self._at(look_at, self._scale_again, function)
                self._short[function.record.key] = function
                return
            for other in self._carry_out(chosen, function):
                self._scale(other)
        self._short.pop(function.record.key, None)

    def _scale_again(self, function: Function) -> None:
        if function.queue:
            self._scale(function)

    def _retry_short(self) -> None:
        if self._planner.placing.careful:
            self._reconsider()
        for key in list(self._short)[:RETRIES_MAXIMUM]:
            function = self._short.get(key)
            if function is not None:
                self._scale(function)

    def _look_later(self, function: Function, demand: Demand, *, at_once: bool = False) -> None:
        """Look at the function again when one of its idle times has passed."""
        if function.record.scaling.kpa is not None:
            return  # It is looked at with every tick.
        stated, now = function.record.scaling.idle_seconds, self._now
        kept = demand.retention.keep_seconds if stated is None else stated
        moments = [moment + kept for moment in demand.last_needed if moment + kept > now]
        due = demand.retention.due
        if due is not None and stated is None:
            moments += [
                moment
                for moment in (
                    demand.last_active + due.prewarm_seconds - function.start_seconds,
                    demand.last_active + due.keep_seconds,
                )
                if moment > now
            ]
        at = min(moments, default=now if at_once else math.inf) + LATER_SECONDS
        if at < function.checking_at:
            function.checking_at = at
            self._at(at, self._check, (function, at))

    def _tick(self, function: Function) -> None:
        """What averages decide is decided anew every two seconds."""
        self._ledger.autoscale(self._replicas, self._now)
        self._settle(function)
        if self._arriving or function.instances or function.queue:
            self._at(self._now + TICK_SECONDS, self._tick, function)

    def _replicas(self, key: str) -> tuple[int, int]:
        instances = self._by_key[key].instances
        return sum(i.state == "serving" for i in instances), len(instances)

    def _check(self, what: tuple[Function, float]) -> None:
        function, at = what
        if function.checking_at != at:
            return
        function.checking_at = math.inf
        demand = self._settle(function)
        if function.instances or demand.retention.due:
            self._look_later(function, demand)

    def _settle(self, function: Function) -> Demand:
        """Start what is due, and end what is idle and no longer kept."""
        demand = self._hear(function)
        lead_seconds = function.start_seconds if demand.retention.due else 0.0
        existing = function.existing
        wanted = desired(function.record, demand, existing, self._now, lead_seconds)
        if wanted > existing:
            self._scale(function)
        elif wanted < existing:
            idle = [i for i in function.instances if i.state == "serving" and _unused(i)]
            # Those with the longest experience stay.
            for instance in idle[wanted - existing :]:
                self._end(instance)
            self._retry_short()
        return demand


def _free_slot(function: Function) -> Instance | None:
    """The serving instance with the fewest requests, if one has a free slot."""
    best, least = None, function.record.scaling.concurrency
    for instance in function.instances:
        if instance.state == "serving" and instance.predecessor is None:
            running = len(instance.running)
            if running < least:
                best, least = instance, running
    return best


def _unused(instance: Instance) -> bool:
    return not instance.running and instance.predecessor is None
