"""The leader's picture of the cluster: the columns, the demand, and what must rest.

It follows the view record by record, so what a change costs does not depend on what else there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import structlog

from stoker.placement.decisions import Decisions
from stoker.placement.demand import DemandLedger
from stoker.placement.errors import InstanceLost, StartFailed, StokerError
from stoker.placement.fleet import Fleet
from stoker.placement.plan import note_spare
from stoker.placement.records import (
    Assignment,
    FunctionRecord,
    InstanceRecord,
    NodeRecord,
    Record,
)
from stoker.placement.scale import Demand
from stoker.placement.view import Snapshot, View

# An address whose instance ended stays unused until its node stopped announcing it, or so long.
ADDRESS_REST_SECONDS = 60.0

_log = structlog.get_logger()


class Picture:
    """Not thread-safe: its owner's lock guards it. Times are seconds on the caller's clock."""

    def __init__(self, view: View, bin_seconds: float) -> None:
        self._view = view
        self.ledger = DemandLedger(bin_seconds)
        self.decisions = Decisions()
        self.fleet = Fleet()
        self._resting: dict[str, tuple[str, float]] = {}
        self._versions: Mapping[str, int] = {}

    def draw_anew(self, now: float) -> Snapshot:
        """Follow the whole view: what was decided and not carried out is in the columns alone."""
        self.follow(now)
        snapshot = self._view.snapshot()
        for instance_id, order in tuple(self.fleet.assignments.items()):
            if snapshot.assignments.get(instance_id) != order:
                self.fleet.drop(order, now)
        for order in snapshot.assignments.values():
            self.fleet.put(order, now)
        self._follow_functions(snapshot, now)
        self._learn(snapshot, snapshot.assignments, now)
        return snapshot

    def begin(self, snapshot: Snapshot, versions: Mapping[str, int], now: float) -> None:
        """Begin to lead: what exists counts as needed just now.

        `versions` are those of the functions whose scale requests were carried out.
        """
        existing = {key: len(snapshot.assignments_of(key)) for key in snapshot.functions}
        self.ledger.begin(existing, versions, snapshot.failures, now)

    def requests(self, keys: Iterable[str]) -> dict[str, int | None]:
        """By which version of its record each function asks for replicas; None where it does not,
        or is gone.
        """
        functions = self.fleet.functions
        return {
            key: None
            if key not in functions or functions[key].replicas_requested is None
            else self._versions[key]
            for key in keys
        }

    def follow(self, now: float) -> tuple[set[str], bool]:
        """Take in what changed in the view, and that time has passed.

        The functions that it concerns, and whether a node may have more room than before.
        """
        snapshot, changes = self._view.changes()
        touched: set[str] = set()
        instances: set[str] = set()
        functions_moved = more_room = False
        for before, after in changes:
            more_room = more_room or _makes_room(before, after)
            if after is not None:
                self.fleet.put(after, now)
            elif before is not None:
                self.fleet.drop(before, now)
            for record in (before, after):
                if isinstance(record, FunctionRecord):
                    functions_moved = True
                    touched.add(record.key)
                elif isinstance(record, Assignment | InstanceRecord):
                    touched.add(record.function)
                    instances.add(record.instance_id)
        if functions_moved:
            self._follow_functions(snapshot, now)
        self._learn(snapshot, instances, now)
        self.ledger.settle(now)
        self.ledger.autoscale(snapshot.replicas_of, now)
        more_room = self._release_addresses(now) or more_room
        return touched & snapshot.functions.keys(), more_room

    def _follow_functions(self, snapshot: Snapshot, now: float) -> None:
        self._versions = snapshot.function_versions
        self.ledger.follow(snapshot.functions, self._versions, now)

    def _release_addresses(self, now: float) -> bool:
        """Give the addresses back that rested enough, and say whether there was one."""
        resting = len(self._resting)
        for address, (node_id, since) in tuple(self._resting.items()):
            node = self.fleet.nodes.get(node_id)
            gone = node is None or address not in node.spare_addresses
            if gone or now - since >= ADDRESS_REST_SECONDS:
                del self._resting[address]
                self.fleet.release_address(address)
        return len(self._resting) < resting

    def rest(self, assignment: Assignment, now: float) -> None:
        """Give nobody the address of an assignment that ends now, for a while."""
        if assignment.address not in self._resting:
            self.fleet.hold_address(assignment.address)
        self._resting[assignment.address] = assignment.node_id, now

    def note_spares(self, keys: Iterable[str], now: float) -> None:
        """Say again how many instances of these functions may give way to others."""
        demands = self.demands(now)
        for key in keys:
            function = self.fleet.functions.get(key)
            if function is not None:
                note_spare(self.fleet, function, demands[key], now)

    def demands(self, now: float) -> Mapping[str, Demand]:
        """What every function asks for, worked out when it is looked up."""
        return _Demands(self.ledger, self.fleet.functions, now)

    def _learn(self, snapshot: Snapshot, instance_ids: Iterable[str], now: float) -> None:
        """Take what the agents say of these instances into account of the next starts."""
        for instance_id in sorted(instance_ids):
            assignment = snapshot.assignments.get(instance_id)
            instance = snapshot.instances.get(instance_id)
            if assignment is None or instance is None:
                self.ledger.ended(instance_id)
            elif instance.state == "serving":
                self.ledger.serves(assignment, instance, now)
                self.decisions.served(instance, self.fleet)
            else:
                self.ledger.ended(instance_id)
                if instance.state == "failed":
                    self._note_failure(snapshot, assignment, instance, now)

    def _note_failure(
        self, snapshot: Snapshot, assignment: Assignment, instance: InstanceRecord, now: float
    ) -> None:
        function = snapshot.functions.get(instance.function)
        if function is None or function.generation != instance.generation:
            return
        name, node_id = instance.instance_id, instance.node_id
        if instance.failure:
            error = StokerError.from_wire(instance.failure)
        else:
            error = StartFailed(f"The instance {name} on node {node_id} gave no reason to end.")
        if isinstance(error, InstanceLost):
            # It was ready and took requests: nothing holds the next start back.
            self.ledger.succeeded(assignment)
        elif self.ledger.failed(instance, error, now):
            _log.warning(
                "instance_failed",
                function=function.key,
                node=node_id,
                instance=name,
                code=error.code,
                cause=error.cause,
            )


def _makes_room(before: Record | None, after: Record | None) -> bool:
    if isinstance(after, NodeRecord):
        return not isinstance(before, NodeRecord) or _size(after) != _size(before)
    return after is None and isinstance(before, Assignment | InstanceRecord)


def _size(node: NodeRecord) -> tuple[object, ...]:
    return node.spare_addresses, node.instances_maximum, node.dram_bytes, node.device_count


class _Demands(Mapping[str, Demand]):
    def __init__(
        self, ledger: DemandLedger, functions: Mapping[str, FunctionRecord], now: float
    ) -> None:
        self._ledger = ledger
        self._functions = functions
        self._now = now
        self._known: dict[str, Demand] = {}

    def __getitem__(self, key: str) -> Demand:
        found = self._known.get(key)
        if found is None:
            if key not in self._functions:
                raise KeyError(key)
            found = self._known[key] = self._ledger.demand_of(key, self._now)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)

    def __len__(self) -> int:
        return len(self._functions)
