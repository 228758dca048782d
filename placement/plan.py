"""What to start, stop and refuse. Pure: (fleet, demand, now) -> Plan, carried out on the fleet.

Invariants of every plan, applied to its fleet:
- no two assignments share a node's address, and every address given out was announced as spare;
- no function has more assignments of its generation than its maximum;
- a node has at most `instances_maximum` assignments, and no device has two, unless it had before;
- the same arguments give the same plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from stoker.placement.choice import Ask, Candidate, Decision, choose
from stoker.placement.estimate import PREFILL_SECONDS
from stoker.placement.fleet import Fleet, Placed
from stoker.placement.forecast import forecast
from stoker.placement.keepalive import greedy_dual, waiting_cost
from stoker.placement.placing import PRESENT_ABILITIES, STOKER, Abilities, Placing
from stoker.placement.records import Assignment, FunctionRecord, InstanceRecord, NodeRecord
from stoker.placement.scale import Demand, called_for, desired
from stoker.placement.survey import Survey
from stoker.placement.view import Snapshot

# An agent announces an instance as soon as it sees the assignment; after this it never will.
ANNOUNCE_SECONDS = 20.0
# What an instance holds beside its weights.
INSTANCE_BYTES = 128 * 1024 * 1024
# How far ahead a call counts when an idle instance is weighed against who waits.
KEPT_SECONDS_MAXIMUM = 3600.0

_NO_DEMAND = Demand()


@dataclass(frozen=True, slots=True)
class Stop:
    assignment: Assignment
    reason: str


@dataclass(frozen=True, slots=True)
class Shortage:
    """A function that should have more instances than the nodes can take.

    `may_pass` is false where waiting does not help: no node is large enough.
    """

    function: str
    may_pass: bool
    survey: Survey = field(compare=False, repr=False)

    def refusals(self, count: int | None = None) -> tuple[tuple[str, str], ...]:
        """(node_id, why it cannot take one), of the first `count` nodes or all, by their ids."""
        return self.survey.refusals(count)


@dataclass(frozen=True, slots=True)
class Plan:
    """`decisions` say why of each start, of what is waited for instead, and of each shortage."""

    starts: tuple[Assignment, ...] = ()
    stops: tuple[Stop, ...] = ()
    shortages: tuple[Shortage, ...] = ()
    decisions: tuple[tuple[Decision, Assignment | None], ...] = field(
        default=(), compare=False, repr=False
    )


class Tables(Protocol):
    """What a snapshot and a fleet have in common."""

    @property
    def functions(self) -> Mapping[str, FunctionRecord]: ...
    @property
    def nodes(self) -> Mapping[str, NodeRecord]: ...
    @property
    def instances(self) -> Mapping[str, InstanceRecord]: ...


def plan(
    fleet: Fleet,
    demand: Mapping[str, Demand],
    now: float,
    *,
    epoch: int,
    first_number: int = 0,
    only: Iterable[str] | None = None,
    placing: Placing = STOKER,
    abilities: Abilities = PRESENT_ABILITIES,
) -> Plan:
    """Decide for the whole cluster, or for the functions in `only`.

    New instances are called `<epoch>-<number>`, numbered from `first_number`. `fleet` is as if the
    plan were carried out when this returns.
    """
    draft = _Draft(fleet, demand, now, epoch, first_number, placing, abilities)
    draft.sweep()
    keys = sorted(fleet.functions if only is None else only)
    missing = {key: draft.settle(fleet.functions[key]) for key in keys}
    order = sorted(
        (key for key, count in missing.items() if count > 0),
        # Who has requests waiting and nothing to serve them comes first.
        key=lambda key: (
            not draft.demand_of(key).busy,
            -fleet.functions[key].priority,
            len(draft.current(key)),
            key,
        ),
    )
    # One instance for each function in turn, so that a large demand cannot starve a small one.
    while order:
        for key in tuple(order):
            missing[key] -= 1
            if not draft.start(fleet.functions[key]) or missing[key] == 0:
                order.remove(key)
    return draft.plan()


def unfit(tables: Tables, assignment: Assignment, now: float) -> str | None:
    """Why the assignment no longer stands for an instance that serves or will, or None."""
    if assignment.function not in tables.functions:
        return "the function was deleted"
    if assignment.node_id not in tables.nodes:
        return "the node is gone"
    instance = tables.instances.get(assignment.instance_id)
    if instance is None:
        announced_by = assignment.created_at + ANNOUNCE_SECONDS
        return "the node never announced it" if now > announced_by else None
    if instance.state in ("failed", "stopping"):
        return f"the instance is {instance.state}"
    return None


def usable(snapshot: Snapshot, key: str, now: float) -> tuple[Assignment, ...]:
    """The function's assignments that serve or will: serving and newest generation first."""

    def rank(assignment: Assignment) -> tuple[bool, int, float, str]:
        instance = snapshot.instances.get(assignment.instance_id)
        serving = instance is not None and instance.state == "serving"
        return not serving, -assignment.generation, assignment.created_at, assignment.instance_id

    alive = [a for a in snapshot.assignments_of(key) if unfit(snapshot, a, now) is None]
    return tuple(sorted(alive, key=rank))


def note_spare(fleet: Fleet, function: FunctionRecord, demand: Demand, now: float) -> None:
    """Note whether instances of the function may be stopped to make room, and at what cost."""
    placed = fleet.of_function(function.key)
    if (demand.busy and not demand.working) or len(placed) <= called_for(function, demand, now):
        fleet.note_spare(function.key, None)
    else:
        fleet.note_spare(function.key, idle_loss(fleet, placed[0], demand, now))


def idle_loss(fleet: Fleet, placed: Placed, demand: Demand, now: float) -> float:
    """The waiting that stopping an idle instance will probably cost, in seconds.

    That is the wait for a start, times the odds that a call comes while it would be kept. Its
    weights stay in memory, so a start only has to copy them to its devices, if it has some.
    """
    weight_bytes = placed.checkpoint.weight_bytes if placed.checkpoint else 0
    to_device = float(fleet.rows.device_bandwidth[placed.row])
    seconds = demand.start_seconds + weight_bytes / to_device
    kept_seconds = min(demand.retention.keep_seconds, KEPT_SECONDS_MAXIMUM)
    called = -math.expm1(-demand.rate(now) * kept_seconds)
    return seconds * called


class _Draft:
    """The plan in the making; the fleet is what will exist if it is carried out."""

    def __init__(
        self,
        fleet: Fleet,
        demand: Mapping[str, Demand],
        now: float,
        epoch: int,
        first_number: int,
        placing: Placing,
        abilities: Abilities,
    ) -> None:
        self._fleet = fleet
        self._demand = demand
        self._now = now
        self._epoch = epoch
        self._number = first_number
        self._placing = placing
        self._abilities = abilities
        self._starts: list[Assignment] = []
        self._stops: list[Stop] = []
        self._shortages: list[Shortage] = []
        self._decisions: list[tuple[Decision, Assignment | None]] = []

    def plan(self) -> Plan:
        return Plan(
            tuple(self._starts),
            tuple(self._stops),
            tuple(self._shortages),
            tuple(self._decisions),
        )

    def demand_of(self, key: str) -> Demand:
        return self._demand.get(key, _NO_DEMAND)

    def current(self, key: str) -> list[Assignment]:
        """The assignments of the function's present generation, oldest first."""
        generation = self._fleet.functions[key].generation
        every = (placed.assignment for placed in self._fleet.of_function(key))
        return sorted((a for a in every if a.generation == generation), key=_age)

    def sweep(self) -> None:
        """Stop what is dead."""
        for assignment in sorted(self._fleet.doubtful.values(), key=_age):
            reason = unfit(self._fleet, assignment, self._now)
            if reason is not None:
                self._stop(assignment, reason)

    def settle(self, function: FunctionRecord) -> int:
        """Stop what `function` no longer needs and return how many it lacks."""
        demand, current = self.demand_of(function.key), self.current(function.key)
        outdated = self._outdated(function)
        if outdated and (not demand.busy or any(map(self._serving, current))):
            for assignment in outdated:
                self._stop(assignment, "a newer generation was deployed")
        lead_seconds = self._start_seconds(function) if demand.retention.due else 0.0
        wanted = desired(function, demand, len(current), self._now, lead_seconds)
        # The instances that serve and have the longest experience stay.
        current.sort(key=lambda a: (not self._serving(a), _age(a)))
        for assignment in current[wanted:]:
            self._stop(assignment, "scaled down")
        self._note_spare(function)
        if self._now < demand.not_before:
            return 0
        return max(0, wanted - len(current))

    def start(self, function: FunctionRecord) -> bool:
        """Start one instance where its first token is predicted soonest, if there is room."""
        demand = self.demand_of(function.key)
        ask = Ask(
            function,
            # What is only expected to be called takes nobody's place.
            waited=called_for(function, demand, self._now) > 0,
            avoid=demand.avoid,
            existing=self._existing(function, demand),
            number=self._number,
            prefill_seconds=demand.prefill_seconds or PREFILL_SECONDS,
            since=demand.waiting_since,
            urgent=demand.busy and not self.current(function.key),
        )
        made = choose(
            self._fleet,
            ask,
            self._now,
            placing=self._placing,
            abilities=self._abilities,
            giving=lambda placed: self._given(placed, function),
        )
        chosen = made.chosen
        if chosen is None:
            may_pass = not self._fleet.nodes or bool(made.survey.able.any())
            self._shortages.append(Shortage(function.key, may_pass, made.survey))
            self._decisions.append((made, None))
            return False
        started = None
        ways = {victim.how for victim in chosen.victims}
        if not chosen.instance_id and ways <= {"stop", "drain"}:
            started = self._carry_out(function, chosen)
        self._decisions.append((made, started))
        return started is not None

    def _existing(self, function: FunctionRecord, demand: Demand) -> tuple[str, float] | None:
        """An instance that serves, and when the last request that waits would be its turn.

        What is starting will take its share of those that wait.
        """
        current = self.current(function.key)
        serving = [a for a in current if self._serving(a)]
        concurrency = function.scaling.concurrency
        waiting = demand.in_flight + demand.queued - len(current) * concurrency
        if not serving or waiting <= 0 or demand.request_seconds <= 0.0:
            return None
        turns = waiting / (len(serving) * concurrency)
        return serving[0].instance_id, turns * demand.request_seconds

    def _carry_out(self, function: FunctionRecord, chosen: Candidate) -> Assignment:
        for victim in chosen.victims:
            lower = ", whose priority is higher" if victim.how == "drain" else ""
            self._stop(victim.assignment, f"its place was needed for {function.key}{lower}")
            self._note_spare(self._fleet.functions[victim.assignment.function])
        address = next(self._fleet.free_addresses(chosen.node_id), None)
        assert address is not None, "a candidate's node has a spare address"
        assignment = Assignment(
            instance_id=f"{self._epoch}-{self._number}",
            function=function.key,
            generation=function.generation,
            node_id=chosen.node_id,
            address=address,
            epoch=self._epoch,
            created_at=self._now,
            devices=self._fleet.free_devices(chosen.node_id)[: chosen.device_count],
            source=chosen.peer,
        )
        self._number += 1
        self._starts.append(assignment)
        self._fleet.put(assignment, self._now, chosen.deadline)
        self._note_spare(function)
        return assignment

    def _outdated(self, function: FunctionRecord) -> list[Assignment]:
        every = (placed.assignment for placed in self._fleet.of_function(function.key))
        return sorted((a for a in every if a.generation != function.generation), key=_age)

    def _note_spare(self, function: FunctionRecord) -> None:
        note_spare(self._fleet, function, self.demand_of(function.key), self._now)

    def _given(
        self, placed: Placed, function: FunctionRecord
    ) -> tuple[float, tuple[float, ...]] | None:
        """What is lost if this idle instance goes to make room for `function`; None: it stays."""
        assignment = placed.assignment
        owner = self._fleet.functions.get(assignment.function)
        if owner is None:
            return None
        demand = self.demand_of(owner.key)
        if assignment.generation != owner.generation:
            # Its successor waits for this place, or nobody waits for it at all.
            may_go = owner.key == function.key or not demand.busy
        elif owner.key == function.key or (demand.busy and not demand.working):
            may_go = False  # of one whose instances all count, or may have requests
        else:
            current = self.current(owner.key)
            spare = len(current) - called_for(owner, demand, self._now)
            idle = [a for a in current if self._idle(a, demand)]
            here = [a for a in idle if a.node_id == assignment.node_id]
            may_go = assignment in here[: max(0, spare)]
        if not may_go:
            return None
        # An outdated one of a busy function costs nobody anything: its successor takes its place.
        loss = self._fleet.spare_loss(owner.key) or 0.0
        return loss, (self._worth(placed, demand), demand.last_active, assignment.created_at)

    def _idle(self, assignment: Assignment, demand: Demand) -> bool:
        """Whether it has no requests; what starts while others have some is to take over some."""
        if not demand.busy:
            return True
        return assignment.instance_id not in demand.working and self._serving(assignment)

    def _worth(self, placed: Placed, demand: Demand) -> float:
        """The cost of waiting that keeping it will probably save, per second and byte.

        Greedy-dual, with a rate that ages by itself in place of the clock.
        """
        weight_bytes = placed.checkpoint.weight_bytes if placed.checkpoint else 0
        load_seconds = weight_bytes / float(self._fleet.rows.ssd_bandwidth[placed.row])
        seconds = demand.start_seconds + load_seconds
        cost = waiting_cost(seconds, noticed=placed.checkpoint is not None)
        return greedy_dual(0.0, demand.rate(self._now), cost, INSTANCE_BYTES + weight_bytes)

    def _start_seconds(self, function: FunctionRecord) -> float:
        """How long the soonest start would take now, if every node had room."""
        rows = self._fleet.rows
        present = rows.present[: rows.size]
        if not present.any():
            return 0.0
        predicted = forecast(self._fleet, function, self._now, peers=self._abilities.peers)
        return float(predicted.seconds[present].min())

    def _serving(self, assignment: Assignment) -> bool:
        return self._fleet.serving(assignment.instance_id)

    def _stop(self, assignment: Assignment, reason: str) -> None:
        self._stops.append(Stop(assignment, reason))
        self._fleet.drop(assignment, self._now)


def _age(assignment: Assignment) -> tuple[float, str]:
    return assignment.created_at, assignment.instance_id
