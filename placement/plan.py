"""What to start, stop and refuse. Pure: (snapshot, demand, now) -> Plan.

Invariants of every plan, applied to its snapshot:
- no two assignments share a node's address, and every address given out was announced as spare;
- no function has more assignments of its generation than its maximum;
- a node has at most `instances_maximum` assignments, unless it had more before;
- the same arguments give the same plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from stoker.placement.estimate import SSD_BANDWIDTH_DEFAULT, estimate
from stoker.placement.keepalive import greedy_dual, waiting_cost
from stoker.placement.records import Assignment, CheckpointRef, FunctionRecord, NodeRecord
from stoker.placement.scale import Demand, called_for, desired
from stoker.placement.view import Snapshot

# An agent announces an instance as soon as it sees the assignment; after this it never will.
ANNOUNCE_SECONDS = 20.0
# The DRAM pool is handed out in whole chunks of this size.
CHUNK_BYTES = 16 * 1024 * 1024
# What an instance holds beside its weights.
INSTANCE_BYTES = 128 * 1024 * 1024

_NO_DEMAND = Demand()


@dataclass(frozen=True, slots=True)
class Stop:
    assignment: Assignment
    reason: str


@dataclass(frozen=True, slots=True)
class Shortage:
    """A function that should have more instances than the nodes can take.

    `refusals` are (node_id, why that node cannot take one). `may_pass` is false where waiting
    does not help: no node is large enough.
    """

    function: str
    refusals: tuple[tuple[str, str], ...]
    may_pass: bool


@dataclass(frozen=True, slots=True)
class Plan:
    starts: tuple[Assignment, ...] = ()
    stops: tuple[Stop, ...] = ()
    shortages: tuple[Shortage, ...] = ()


def plan(
    snapshot: Snapshot,
    demand: Mapping[str, Demand],
    now: float,
    *,
    epoch: int,
    first_number: int = 0,
    resting: frozenset[str] = frozenset(),
) -> Plan:
    """Decide for the whole cluster.

    New instances are called `<epoch>-<number>`, numbered from `first_number`. The addresses in
    `resting` were in use a moment ago and are not given out.
    """
    draft = _Draft(snapshot, demand, now, epoch, first_number, resting)
    draft.sweep()
    missing = {key: draft.settle(snapshot.functions[key]) for key in sorted(snapshot.functions)}
    order = sorted(
        (key for key, count in missing.items() if count > 0),
        # Who has requests waiting and nothing to serve them comes first.
        key=lambda key: (not draft.demand_of(key).busy, len(draft.current(key)), key),
    )
    # One instance for each function in turn, so that a large demand cannot starve a small one.
    while order:
        for key in tuple(order):
            missing[key] -= 1
            if not draft.start(snapshot.functions[key]) or missing[key] == 0:
                order.remove(key)
    return Plan(tuple(draft.starts), tuple(draft.stops), tuple(draft.shortages))


def unfit(snapshot: Snapshot, assignment: Assignment, now: float) -> str | None:
    """Why the assignment no longer stands for an instance that serves or will, or None."""
    if assignment.function not in snapshot.functions:
        return "the function was deleted"
    if assignment.node_id not in snapshot.nodes:
        return "the node is gone"
    instance = snapshot.instances.get(assignment.instance_id)
    if instance is None:
        announced_by = assignment.created_at + ANNOUNCE_SECONDS
        return "the node never announced it" if now > announced_by else None
    if instance.state in ("failed", "stopping"):
        return f"the instance is {instance.state}"
    return None


class _Draft:
    """The plan in the making: what will exist if it is carried out."""

    def __init__(
        self,
        snapshot: Snapshot,
        demand: Mapping[str, Demand],
        now: float,
        epoch: int,
        first_number: int,
        resting: frozenset[str],
    ) -> None:
        self._snapshot = snapshot
        self._demand = demand
        self._now = now
        self._epoch = epoch
        self._number = first_number
        self._used = {a.address for a in snapshot.assignments.values()}
        self._used |= {i.address for i in snapshot.instances.values()} | resting
        self._by_function: dict[str, list[Assignment]] = {}
        self._by_node: dict[str, list[Assignment]] = {node_id: [] for node_id in snapshot.nodes}
        self.starts: list[Assignment] = []
        self.stops: list[Stop] = []
        self.shortages: list[Shortage] = []

    def demand_of(self, key: str) -> Demand:
        return self._demand.get(key, _NO_DEMAND)

    def current(self, key: str) -> list[Assignment]:
        """The assignments of the function's present generation, oldest first."""
        generation = self._snapshot.functions[key].generation
        return [a for a in self._by_function.get(key, ()) if a.generation == generation]

    def sweep(self) -> None:
        """Stop what is dead and keep account of the rest."""
        for assignment in sorted(self._snapshot.assignments.values(), key=_age):
            reason = unfit(self._snapshot, assignment, self._now)
            if reason is not None:
                self.stops.append(Stop(assignment, reason))
            else:
                self._add(assignment)

    def settle(self, function: FunctionRecord) -> int:
        """Stop what `function` no longer needs and return how many it lacks."""
        demand, current = self.demand_of(function.key), self.current(function.key)
        outdated = [a for a in self._by_function.get(function.key, ()) if a not in current]
        if outdated and (not demand.busy or any(map(self._serving, current))):
            for assignment in outdated:
                self._stop(assignment, "a newer generation was deployed")
        lead_seconds = self._start_seconds(function) if demand.retention.due else 0.0
        wanted = desired(function, demand, len(current), self._now, lead_seconds)
        # The instances that serve and have the longest experience stay.
        current.sort(key=lambda a: (not self._serving(a), _age(a)))
        for assignment in current[wanted:]:
            self._stop(assignment, "scaled down")
        if self._now < demand.not_before:
            return 0
        return max(0, wanted - len(current))

    def start(self, function: FunctionRecord) -> bool:
        """Start one instance where its first token is predicted soonest, if there is room."""
        fitting: list[tuple[NodeRecord, str]] = []
        refusals: dict[str, str] = {}
        for node in self._snapshot.nodes.values():
            address = self._free_address(node)
            refusal = self._refusal(function, node, address)
            if address is None or refusal is not None:
                refusals[node.node_id] = refusal or "no listening socket is ready"
            else:
                fitting.append((node, address))
        # What is only expected to be called takes nobody's place.
        if not fitting and called_for(function, self.demand_of(function.key), self._now):
            fitting = self._make_room(function)
        if not fitting:
            self.shortages.append(self._shortage(function, refusals))
            return False
        avoid = self.demand_of(function.key).avoid
        node, address = min(
            fitting,
            key=lambda item: (
                item[0].node_id in avoid,
                self._seconds(function, item[0]),
                len(self._by_node[item[0].node_id]),
                item[0].node_id,
            ),
        )
        assignment = Assignment(
            instance_id=f"{self._epoch}-{self._number}",
            function=function.key,
            generation=function.generation,
            node_id=node.node_id,
            address=address,
            epoch=self._epoch,
            created_at=self._now,
        )
        self._number += 1
        self.starts.append(assignment)
        self._used.add(address)
        self._add(assignment)
        return True

    def _make_room(self, function: FunctionRecord) -> list[tuple[NodeRecord, str]]:
        """Stop idle instances on the node where the fewest must go, and return that node."""
        best: tuple[tuple[int, float, str], NodeRecord, str, list[Assignment]] | None = None
        for node in self._snapshot.nodes.values():
            address = self._free_address(node)
            if address is None:
                continue
            victims = self._victims(function, node)
            if victims is None:
                continue
            rank = (len(victims), self._seconds(function, node), node.node_id)
            if best is None or rank < best[0]:
                best = (rank, node, address, victims)
        if best is None:
            return []
        for victim in best[3]:
            self._stop(victim, f"its place was needed for {function.key}")
        return [(best[1], best[2])]

    def _victims(self, function: FunctionRecord, node: NodeRecord) -> list[Assignment] | None:
        """The fewest idle instances, those of least worth first, whose end lets it fit."""
        taken: list[Assignment] = []
        here = self._by_node[node.node_id]
        for candidate in sorted(
            here, key=lambda a: (self._worth(a, node), self._last_active(a), _age(a))
        ):
            if not self._may_go(candidate, function, taken):
                continue
            taken.append(candidate)
            if self._fits_without(taken, function, node):
                break
        else:
            return None
        for victim in tuple(taken):
            others = [a for a in taken if a is not victim]
            if self._fits_without(others, function, node):
                taken = others
        return taken

    def _fits_without(
        self, going: list[Assignment], function: FunctionRecord, node: NodeRecord
    ) -> bool:
        left = [a for a in self._by_node[node.node_id] if a not in going]
        return self._lack(function, node, left) is None

    def _may_go(
        self, candidate: Assignment, function: FunctionRecord, taken: list[Assignment]
    ) -> bool:
        owner = self._snapshot.functions[candidate.function]
        if candidate.generation != owner.generation:
            # Its successor waits for this place, or nobody waits for it at all.
            return owner.key == function.key or not self.demand_of(owner.key).busy
        if owner.key == function.key or self.demand_of(owner.key).busy:
            return False
        going = sum(a.function == owner.key for a in taken)
        left = len(self.current(owner.key)) - going
        return left > called_for(owner, self.demand_of(owner.key), self._now)

    def _refusal(
        self, function: FunctionRecord, node: NodeRecord, address: str | None
    ) -> str | None:
        lack = self._lack(function, node, self._by_node[node.node_id])
        return lack or ("no listening socket is ready" if address is None else None)

    def _lack(
        self, function: FunctionRecord, node: NodeRecord, here: list[Assignment]
    ) -> str | None:
        """What `node`, running `here`, lacks to take one more instance of `function`."""
        if len(here) >= node.instances_maximum:
            return f"{len(here)} of {node.instances_maximum} instances are in use"
        if function.checkpoint is None:
            return None
        pinned = {ref.digest: ref for ref in map(self._checkpoint, here) if ref is not None}
        pinned[function.checkpoint.digest] = function.checkpoint
        pool_bytes = sum(_pool_bytes(ref) for ref in pinned.values())
        if pool_bytes > node.dram_bytes:
            return f"its weights need {pool_bytes} B of a pool of {node.dram_bytes} B with the rest"
        return None

    def _shortage(self, function: FunctionRecord, refusals: dict[str, str]) -> Shortage:
        nodes = self._snapshot.nodes.values()
        may_pass = not nodes or any(self._lack(function, node, []) is None for node in nodes)
        return Shortage(function.key, tuple(sorted(refusals.items())), may_pass)

    def _free_address(self, node: NodeRecord) -> str | None:
        return next((a for a in node.spare_addresses if a not in self._used), None)

    def _seconds(self, function: FunctionRecord, node: NodeRecord) -> float:
        here = self._by_node[node.node_id]
        loading = [self._checkpoint(a) for a in here if not self._serving(a)]
        queue = [ref for ref in loading if ref is not None]
        return estimate(function, node, self._snapshot.residents, queue).seconds

    def _start_seconds(self, function: FunctionRecord) -> float:
        nodes = self._snapshot.nodes.values()
        return min((self._seconds(function, node) for node in nodes), default=0.0)

    def _worth(self, assignment: Assignment, node: NodeRecord) -> float:
        """The cost of waiting that keeping it will probably save, per second and byte.

        Greedy-dual, with a rate that ages by itself in place of the clock.
        """
        demand, checkpoint = self.demand_of(assignment.function), self._checkpoint(assignment)
        weight_bytes = checkpoint.weight_bytes if checkpoint else 0
        load_seconds = weight_bytes / (node.ssd_bandwidth or SSD_BANDWIDTH_DEFAULT)
        seconds = demand.start_seconds + load_seconds
        cost = waiting_cost(seconds, noticed=checkpoint is not None)
        return greedy_dual(0.0, demand.rate(self._now), cost, INSTANCE_BYTES + weight_bytes)

    def _checkpoint(self, assignment: Assignment) -> CheckpointRef | None:
        return self._snapshot.functions[assignment.function].checkpoint

    def _serving(self, assignment: Assignment) -> bool:
        instance = self._snapshot.instances.get(assignment.instance_id)
        return instance is not None and instance.state == "serving"

    def _last_active(self, assignment: Assignment) -> float:
        return self.demand_of(assignment.function).last_active

    def _add(self, assignment: Assignment) -> None:
        self._by_function.setdefault(assignment.function, []).append(assignment)
        self._by_node[assignment.node_id].append(assignment)

    def _stop(self, assignment: Assignment, reason: str) -> None:
        self.stops.append(Stop(assignment, reason))
        self._by_function[assignment.function].remove(assignment)
        self._by_node[assignment.node_id].remove(assignment)


def _age(assignment: Assignment) -> tuple[float, str]:
    return assignment.created_at, assignment.instance_id


def _pool_bytes(checkpoint: CheckpointRef) -> int:
    return math.ceil(checkpoint.weight_bytes / CHUNK_BYTES) * CHUNK_BYTES
