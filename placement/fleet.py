"""The cluster, ready for decisions: columns and tables kept in step with the records.

    put(record, now) / drop(record, now)   one record came or changed / is gone
    note_work, note_spare                  what is known of an instance's, a function's use
    choice.choose(fleet, ...)              reads whole columns: a decision for one instance

What one record costs does not depend on how many there are. Putting a record again changes
nothing, so who decides puts what it decided, and the store's echo is harmless. Records may come in
any order. Not thread-safe; no I/O and no clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from stoker.placement.fleet_rows import Rows, RowSets
from stoker.placement.holdings import Holdings
from stoker.placement.learnt import Learnt
from stoker.placement.movables import Movables
from stoker.placement.records import (
    Assignment,
    CheckpointRef,
    FunctionRecord,
    InstanceRecord,
    NodeRecord,
    Record,
    ResidentRecord,
)

_K = TypeVar("_K")


# What it costs to stop an idle instance is noted anew when it moved by more than this share.
LOSS_GRAIN = 0.05


@dataclass(frozen=True, slots=True)
class Work:
    """What an instance is busy with. `tokens` are the prompts' and those generated so far.

    `ends_at` is when all of it is expected to be done; `resumable`, whether another instance can
    go on with it.
    """

    tokens: int
    ends_at: float
    resumable: bool = True


@dataclass(slots=True)
class Placed:
    """What one assignment takes of its node: a slot, its devices, its checkpoint's memory."""

    assignment: Assignment
    row: int
    checkpoint: CheckpointRef | None = None
    loading: bool = False
    work: Work | None = None

    @property
    def instance_id(self) -> str:
        return self.assignment.instance_id


class Fleet:
    """`functions`, `nodes`, `instances` and `assignments` are read by who decides, never written.

    `doubtful` are the assignments that may stand for nothing: not announced, failed, stopping, or
    without their function or node.
    """

    def __init__(self, records: Iterable[Record] = (), now: float = 0.0) -> None:
        self.rows = Rows()
        self.holdings = Holdings(self.rows)
        self.learnt = Learnt(self.rows)
        self.movables = Movables()
        self.parked = RowSets()
        self.functions: dict[str, FunctionRecord] = {}
        # By digest: the checkpoints of functions, and the keys of those functions.
        self.checkpoints: dict[str, CheckpointRef] = {}
        self.owners: dict[str, set[str]] = {}
        self.nodes: dict[str, NodeRecord] = {}
        self.instances: dict[str, InstanceRecord] = {}
        self.assignments: dict[str, Assignment] = {}
        self.doubtful: dict[str, Assignment] = {}
        self._placed: dict[str, Placed] = {}
        self._by_function: dict[str, dict[str, Placed]] = {}
        self._by_row: dict[int, dict[str, Placed]] = {}
        self._spare: dict[str, float] = {}
        self._users: dict[str, int] = {}
        self._spare_row: dict[str, int] = {}
        for record in records:
            self.put(record, now)

    def put(self, record: Record, now: float, deadline: float = math.inf) -> None:
        """Take in a record that came or changed; `deadline` is what an assignment promises."""
        match record:
            case NodeRecord():
                self._put_node(record, now)
            case ResidentRecord():
                self.holdings.put(record, now)
            case FunctionRecord():
                self._put_function(record, now)
            case InstanceRecord():
                self._put_instance(record, now)
            case Assignment():
                self._put_assignment(record, now, deadline)

    def drop(self, record: Record, now: float) -> None:
        """Forget a record that is gone; one that is not known is no error."""
        match record:
            case NodeRecord():
                self._drop_node(record.node_id)
            case ResidentRecord():
                self.holdings.drop(record, now)
            case FunctionRecord():
                self._drop_function(record.key)
            case InstanceRecord():
                self._drop_instance(record.instance_id, now)
            case Assignment():
                self._drop_assignment(record.instance_id, now)

    def note_work(self, instance_id: str, work: Work | None) -> None:
        """What an assigned instance is busy with; None when it is idle."""
        placed = self._placed.get(instance_id)
        if placed is not None:
            placed.work = work
            self._note_movable(placed)
            self._sum_up(placed.row)

    def note_spare(self, function_key: str, loss_seconds: float | None) -> None:
        """What stopping an idle instance of the function to make room for another will probably
        cost, in seconds of somebody's waiting; None: none may be stopped.
        """
        before = self._spare.pop(function_key, None)
        if loss_seconds is not None:
            # What hardly moved is left: each of its nodes would have to be looked at.
            if before is not None and abs(before - loss_seconds) <= LOSS_GRAIN * loss_seconds:
                loss_seconds = before
            self._spare[function_key] = loss_seconds
        if before != loss_seconds:
            for placed in self._by_function.get(function_key, {}).values():
                self._sum_up(placed.row)

    def spare_loss(self, function_key: str) -> float | None:
        """What was noted of it last."""
        return self._spare.get(function_key)

    def of_function(self, key: str) -> list[Placed]:
        return list(self._by_function.get(key, {}).values())

    def on_row(self, row: int) -> list[Placed]:
        return list(self._by_row.get(row, {}).values())

    def serving(self, instance_id: str) -> bool:
        instance = self.instances.get(instance_id)
        return instance is not None and instance.state == "serving"

    def free_addresses(self, node_id: str) -> Iterator[str]:
        """The spare addresses of the node that nobody uses."""
        return (a for a in self.nodes[node_id].spare_addresses if not self._users.get(a))

    def free_devices(self, node_id: str) -> tuple[int, ...]:
        """The numbers of the node's devices that no assignment holds."""
        row = self.rows.number(node_id)
        here = self._by_row.get(row, {}) if row is not None else {}
        taken = {device for placed in here.values() for device in placed.assignment.devices}
        return tuple(n for n in range(self.nodes[node_id].device_count) if n not in taken)

    def hold_address(self, address: str) -> None:
        """Give the address to nobody, until it was released as often."""
        users = self._users.get(address, 0)
        self._users[address] = users + 1
        if users == 0 and address in self._spare_row:
            self.rows.spares[self._spare_row[address]] -= 1

    def release_address(self, address: str) -> None:
        users = self._users[address] - 1
        if users > 0:
            self._users[address] = users
            return
        del self._users[address]
        if address in self._spare_row:
            self.rows.spares[self._spare_row[address]] += 1

    def _put_node(self, node: NodeRecord, now: float) -> None:
        before, rows = self.nodes.get(node.node_id), self.rows
        if before == node:
            return
        row = rows.hold(node.node_id)
        if before is not None:
            rows.release(row)
        self.nodes[node.node_id] = node
        if before is None or before.spare_addresses != node.spare_addresses:
            self._put_addresses(row, before.spare_addresses if before else (), node.spare_addresses)
        self.parked.replace(row, before.parked if before else (), node.parked)
        here = self.on_row(row)
        rows.present[row] = True
        rows.slots[row] = node.instances_maximum
        rows.pool_bytes[row] = node.dram_bytes
        rows.devices[row] = node.device_count
        rows.device_bytes[row] = node.device_bytes
        taken = sum(len(placed.assignment.devices) for placed in here)
        rows.devices_free[row] = node.device_count - taken
        rows.kind[row] = rows.kinds(node.device_kind)
        rows.zone[row] = rows.zones(node.zone)
        self.learnt.apply(row, node)
        if before is None:
            for placed in here:
                # Until now nobody knew how long its load takes here.
                self._lift(placed, now)
                self._lay(placed, now, math.inf)
                self._settle_doubt(placed.assignment)

    def _drop_node(self, node_id: str) -> None:
        node, row = self.nodes.pop(node_id, None), self.rows.number(node_id)
        if node is None or row is None:
            return
        self._put_addresses(row, node.spare_addresses, ())
        self.parked.replace(row, node.parked, ())
        self.rows.present[row] = False
        self.learnt.forget_node(node_id)
        for placed in self.on_row(row):
            self._settle_doubt(placed.assignment)
        self.rows.release(row)

    def _put_addresses(self, row: int, before: tuple[str, ...], now: tuple[str, ...]) -> None:
        for address in before:
            if self._spare_row.get(address) == row:
                del self._spare_row[address]
        self._spare_row.update(dict.fromkeys(now, row))
        self.rows.spares[row] = sum(not self._users.get(address) for address in set(now))

    def _put_function(self, function: FunctionRecord, now: float) -> None:
        before = self.functions.get(function.key)
        self.functions[function.key] = function
        self._disown(before)
        if function.checkpoint is not None:
            self.checkpoints[function.checkpoint.digest] = function.checkpoint
            self.owners.setdefault(function.checkpoint.digest, set()).add(function.key)
        if before is None or before.priority != function.priority:
            for placed in self.of_function(function.key):
                self._sum_up(placed.row)
        moved = before is None or before.checkpoint != function.checkpoint
        for placed in self.of_function(function.key) if moved else ():
            self._lift(placed, now)
            self._lay(placed, now, math.inf)
            self._settle_doubt(placed.assignment)

    def _drop_function(self, key: str) -> None:
        self.note_spare(key, None)
        self.learnt.forget_function(key)
        gone = self.functions.pop(key, None)
        self._disown(gone)
        for placed in self.of_function(key) if gone else ():
            self._settle_doubt(placed.assignment)
            self._sum_up(placed.row)

    def _disown(self, function: FunctionRecord | None) -> None:
        if function is None or function.checkpoint is None:
            return
        digest = function.checkpoint.digest
        self.owners[digest].discard(function.key)
        if not self.owners[digest]:
            del self.owners[digest], self.checkpoints[digest]

    def _put_instance(self, instance: InstanceRecord, now: float) -> None:
        before = self.instances.get(instance.instance_id)
        if before == instance:
            return
        self.hold_address(instance.address)
        if before is not None:
            self.release_address(before.address)
        self.instances[instance.instance_id] = instance
        self._note_state(instance.instance_id, now)

    def _drop_instance(self, instance_id: str, now: float) -> None:
        instance = self.instances.pop(instance_id, None)
        if instance is not None:
            self.release_address(instance.address)
            self._note_state(instance_id, now)

    def _note_state(self, instance_id: str, now: float) -> None:
        placed = self._placed.get(instance_id)
        if placed is None:
            return
        self._settle_doubt(placed.assignment)
        if placed.loading and self.serving(instance_id):
            self._stop_loading(placed, now)

    def _put_assignment(self, assignment: Assignment, now: float, deadline: float) -> None:
        key, instance_id = assignment.function, assignment.instance_id
        if self.assignments.get(instance_id) == assignment:
            return
        self._drop_assignment(instance_id, now)
        placed = Placed(assignment, self.rows.hold(assignment.node_id))
        self.assignments[instance_id] = assignment
        self._placed[instance_id] = placed
        self._by_function.setdefault(key, {})[instance_id] = placed
        self._by_row.setdefault(placed.row, {})[instance_id] = placed
        self.hold_address(assignment.address)
        self.rows.slots_used[placed.row] += 1
        self.rows.devices_free[placed.row] -= len(assignment.devices)
        self._sum_up(placed.row)
        self._lay(placed, now, deadline)
        self._settle_doubt(assignment)

    def _drop_assignment(self, instance_id: str, now: float) -> None:
        placed = self._placed.pop(instance_id, None)
        if placed is None:
            return
        key, row = placed.assignment.function, placed.row
        del self.assignments[instance_id]
        self.movables.drop(instance_id)
        self.doubtful.pop(instance_id, None)
        self._lift(placed, now)
        _remove(self._by_function, key, instance_id)
        _remove(self._by_row, row, instance_id)
        self.release_address(placed.assignment.address)
        self.rows.slots_used[row] -= 1
        self.rows.devices_free[row] += len(placed.assignment.devices)
        self._sum_up(row)
        self.rows.release(row)

    def _lay(self, placed: Placed, now: float, deadline: float) -> None:
        """Count the memory of its checkpoint, and its load unless it serves already."""
        assignment = placed.assignment
        function = self.functions.get(assignment.function)
        placed.checkpoint = function.checkpoint if function else None
        self._note_movable(placed)
        if placed.checkpoint is None:
            return
        self.holdings.pin(placed.row, placed.checkpoint)
        placed.loading = not self.serving(assignment.instance_id)
        if placed.loading:
            names = (assignment.instance_id, assignment.source)
            self.holdings.begin(placed.row, placed.checkpoint, *names, now, deadline)

    def _note_movable(self, placed: Placed) -> None:
        function, work = self.functions.get(placed.assignment.function), placed.work
        if function is None or work is None or not work.resumable:
            self.movables.drop(placed.instance_id)
            return
        on_device = bool(function.devices) and all(n.kind != "cpu" for n in function.devices)
        name, row, ref = placed.instance_id, placed.row, placed.checkpoint
        self.movables.put(name, row, ref, work.tokens, needs_device=on_device)

    def _lift(self, placed: Placed, now: float) -> None:
        if placed.checkpoint is None:
            return
        if placed.loading:
            self._stop_loading(placed, now)
        self.holdings.unpin(placed.row, placed.checkpoint)
        placed.checkpoint = None

    def _stop_loading(self, placed: Placed, now: float) -> None:
        assert placed.checkpoint is not None
        placed.loading = False
        self.holdings.end(placed.row, placed.checkpoint, placed.instance_id, now)

    def _sum_up(self, row: int) -> None:
        """The least that it may take, in seconds or in loss, until something on the node ends."""
        rows, busy = self.rows, 0
        frees_at = tokens = loss = working = spare = held = math.inf
        for placed in self._by_row.get(row, {}).values():
            work, owner = placed.work, self.functions.get(placed.assignment.function)
            priority = owner.priority if owner else -math.inf
            if work is not None:
                busy, frees_at = busy + 1, min(frees_at, work.ends_at)
                working = min(working, priority)
                tokens = min(tokens, work.tokens) if work.resumable else tokens
            elif (lost := self._spare.get(placed.assignment.function)) is None:
                held = min(held, priority)
            else:
                loss, spare = min(loss, lost), min(spare, priority)
        rows.busy[row], rows.frees_at[row], rows.least_tokens[row] = busy, frees_at, tokens
        rows.least_loss[row], rows.least_priority[row] = loss, working
        rows.least_spare_priority[row], rows.least_held_priority[row] = spare, held

    def _settle_doubt(self, assignment: Assignment) -> None:
        instance = self.instances.get(assignment.instance_id)
        sound = (
            instance is not None
            and instance.state in ("starting", "serving")
            and assignment.function in self.functions
            and assignment.node_id in self.nodes
        )
        if sound:
            self.doubtful.pop(assignment.instance_id, None)
        else:
            self.doubtful[assignment.instance_id] = assignment


def _remove(index: dict[_K, dict[str, Placed]], key: _K, instance_id: str) -> None:
    del index[key][instance_id]
    if not index[key]:
        del index[key]
