"""The view: a read-only snapshot of the store in memory, kept fresh by watches.

Whoever serves requests reads the snapshot and never the store. One's own writes are put in by
`apply` and hold until the store's watch confirms them, so a late echo of an older value cannot
take them back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from threading import Condition
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

import structlog

from stoker.placement.errors import BadRequest, DeadlineExceeded
from stoker.placement.records import (
    Assignment,
    FailureRecord,
    FunctionRecord,
    ImageRecord,
    InstanceRecord,
    LeaderRecord,
    NodeRecord,
    Prefetch,
    Record,
    ResidentRecord,
    decode,
)
from stoker.placement.store import Change, Entry
from stoker.placement.token_record import TokenRecord

LEADER_PATH = "/placement/leader"
# How long one's own write outranks what the watch says of the same path.
OWN_WRITE_SECONDS = 2.0

# What a table holds, and by what its records are looked up. Read in this order on a refresh: what
# refers to others comes first, so that nothing is listed whose function or node was not there yet.
_TABLES: Mapping[str, tuple[type, Callable[[Any], Any]]] = {
    "/assignments": (Assignment, lambda r: r.instance_id),
    "/prefetches": (Prefetch, lambda r: r.node_id),
    "/instances": (InstanceRecord, lambda r: r.instance_id),
    "/residents": (ResidentRecord, lambda r: (r.node_id, r.digest)),
    "/failures": (FailureRecord, lambda r: r.function),
    "/nodes": (NodeRecord, lambda r: r.node_id),
    "/functions": (FunctionRecord, lambda r: r.key),
    "/images": (ImageRecord, lambda r: r.image),
    "/tokens": (TokenRecord, lambda r: r.token_id),
    "/placement": (LeaderRecord, lambda _: "leader"),
}

_log = structlog.get_logger()
_R = TypeVar("_R", Assignment, InstanceRecord)


class WatchedStore(Protocol):
    """What the view needs of the store."""

    def list(self, prefix: str) -> tuple[Entry, ...]: ...

    def watch(self, prefix: str, on_change: Callable[[Change], None]) -> Callable[[], None]: ...


@dataclass(frozen=True)
class Snapshot:
    """The records of the store at one moment. Never changes.

    `function_versions` are the store's versions of the function records: a version that moved
    means that somebody wrote the record, also if it reads as before.
    """

    functions: Mapping[str, FunctionRecord] = field(default_factory=dict)
    nodes: Mapping[str, NodeRecord] = field(default_factory=dict)
    residents: Mapping[tuple[str, str], ResidentRecord] = field(default_factory=dict)
    instances: Mapping[str, InstanceRecord] = field(default_factory=dict)
    assignments: Mapping[str, Assignment] = field(default_factory=dict)
    images: Mapping[str, ImageRecord] = field(default_factory=dict)
    failures: Mapping[str, FailureRecord] = field(default_factory=dict)
    prefetches: Mapping[str, Prefetch] = field(default_factory=dict)
    tokens: Mapping[str, TokenRecord] = field(default_factory=dict)
    leader: LeaderRecord | None = None
    function_versions: Mapping[str, int] = field(default_factory=dict)
    instance_index: Mapping[str, tuple[InstanceRecord, ...]] | None = field(
        default=None, repr=False, compare=False
    )
    assignment_index: Mapping[str, tuple[Assignment, ...]] | None = field(
        default=None, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.instance_index is None:
            object.__setattr__(self, "instance_index", _by_function(self.instances.values()))
        if self.assignment_index is None:
            object.__setattr__(self, "assignment_index", _by_function(self.assignments.values()))

    def records(self) -> Iterator[Record]:
        """Everything that a decision on instances reads."""
        tables: tuple[Mapping[Any, Record], ...] = (
            self.functions,
            self.nodes,
            self.residents,
            self.instances,
            self.assignments,
        )
        for table in tables:
            yield from table.values()

    def instances_of(self, function_key: str) -> tuple[InstanceRecord, ...]:
        """Every instance of the function, in the order of their ids."""
        return (self.instance_index or {}).get(function_key, ())

    def assignments_of(self, function_key: str) -> tuple[Assignment, ...]:
        """Every assignment of the function, in the order of their ids."""
        return (self.assignment_index or {}).get(function_key, ())

    def replicas_of(self, function_key: str) -> tuple[int, int]:
        """How many of the function's assignments serve, and how many there are."""
        assigned = self.assignments_of(function_key)
        found = (self.instances.get(assignment.instance_id) for assignment in assigned)
        return sum(i is not None and i.state == "serving" for i in found), len(assigned)


@dataclass(slots=True)
class _OwnWrite:
    change: Change
    until: float
    late: Change | None = None

    def confirmed_by(self, change: Change) -> bool:
        own, seen = self.change.entry, change.entry
        if own is None or seen is None:
            return own is seen
        return seen.version >= own.version


class View:
    """Watches `store` and hands out snapshots; complete when the constructor returns."""

    def __init__(self, store: WatchedStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        # Guards every field below, and tells the waiters of a change.
        self._changed = Condition()
        self._known: dict[str, dict[str, tuple[Entry, Any]]] = {table: {} for table in _TABLES}
        self._tables: dict[str, dict[Any, Any]] = {table: {} for table in _TABLES}
        self._versions: dict[str, int] = {}
        self._instances_of: _Index[InstanceRecord] = _Index()
        self._assignments_of: _Index[Assignment] = _Index()
        self._stale: set[str] = set()
        self._pending: dict[str, tuple[Record | None, Record | None]] | None = None
        self._snapshot = Snapshot()
        self._own: dict[str, _OwnWrite] = {}
        self._touched: set[str] | None = None
        self._callbacks: tuple[Callable[[], None], ...] = ()
        self._stop_watches = [store.watch(table, self._on_watch) for table in _TABLES]
        self.refresh()

    def snapshot(self) -> Snapshot:
        """The present snapshot; the same object until something changes."""
        with self._changed:
            if self._own:
                self._settle_own_writes()
            if self._stale:
                self._rebuild()
            return self._snapshot

    def changes(self) -> tuple[Snapshot, list[tuple[Record | None, Record | None]]]:
        """The present snapshot, and (before, after) of each record that a decision reads and that
        is another than at the last call; the first call gives everything. For one reader.
        """
        with self._changed:
            snapshot = self.snapshot()
            pending, self._pending = self._pending, {}
            if pending is None:
                return snapshot, [(None, record) for record in snapshot.records()]
            return snapshot, list(pending.values())

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call `callback` after every change, from the thread that brought it."""
        with self._changed:
            self._callbacks = (*self._callbacks, callback)

    def apply(self, change: Change) -> None:
        """See one's own write at once: the entry just written, or None if it was deleted."""
        with self._changed:
            known = self._known.get(_table_of(change.path), {}).get(change.path)
            if known and change.entry and known[0].version >= change.entry.version:
                return  # The watch was faster, perhaps with somebody's later write.
            # The youngest last, so that who settles them stops at the first that still holds.
            self._own.pop(change.path, None)
            self._own[change.path] = _OwnWrite(change, self._clock() + OWN_WRITE_SECONDS)
            changed = self._take(change)
        self._tell(changed)

    def refresh(self) -> None:
        """Read every table from the store; CoordinationLost if it does not answer."""
        with self._changed:
            self._touched = set()
        listed = {table: self._store.list(table) for table in _TABLES}
        changed = False
        with self._changed:
            touched, self._touched = self._touched or set(), None
            for table, entries in listed.items():
                present = {entry.path for entry in entries}
                gone = [path for path in self._known[table] if path not in present]
                changes = [Change(entry.path, entry) for entry in entries]
                changes += [Change(path, None) for path in gone]
                for change in changes:
                    # What came by watch meanwhile is newer than the list.
                    if change.path not in touched:
                        changed = self._take(change) or changed
        self._tell(changed)

    def wait_for(self, predicate: Callable[[Snapshot], bool], timeout_seconds: float) -> Snapshot:
        """The first snapshot for which `predicate` holds; DeadlineExceeded if none comes."""
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            while True:
                snapshot = self.snapshot()
                if predicate(snapshot):
                    return snapshot
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise DeadlineExceeded(
                        f"The store did not come to the state waited for in {timeout_seconds:g} s."
                    )
                self._changed.wait(min(remaining, OWN_WRITE_SECONDS) if self._own else remaining)

    def close(self) -> None:
        """Stop the watches; the last snapshot stays readable."""
        for stop in self._stop_watches:
            stop()

    def _on_watch(self, change: Change) -> None:
        with self._changed:
            own = self._own.get(change.path)
            if own is not None and not own.confirmed_by(change) and self._clock() < own.until:
                own.late = change
                return
            self._own.pop(change.path, None)
            changed = self._take(change)
        self._tell(changed)

    def _settle_own_writes(self) -> None:
        now = self._clock()
        while self._own:
            path, own = next(iter(self._own.items()))
            if own.until > now:
                return
            del self._own[path]
            if own.late is not None:
                self._take(own.late)

    def _take(self, change: Change) -> bool:
        """Put the change into its table and say whether anything changed."""
        table = _table_of(change.path)
        if table not in _TABLES or (table == "/placement" and change.path != LEADER_PATH):
            return False
        if self._touched is not None:
            self._touched.add(change.path)
        known = self._known[table]
        before = known.get(change.path)
        after = None
        if change.entry is None:
            if before is None:
                return False
            del known[change.path]
        else:
            if before is not None and before[0] == change.entry:
                return False
            after = _decoded(_TABLES[table][0], change.entry)
            known[change.path] = (change.entry, after)
        self._replace(table, change, before[1] if before else None, after)
        self._stale.add(table)
        self._changed.notify_all()
        return True

    def _replace(self, table: str, change: Change, before: Any, after: Any) -> None:
        """Put the record into its table and its index."""
        records, key = self._tables[table], _TABLES[table][1]
        if before is not None and records.get(key(before)) is before:
            del records[key(before)]
        if after is not None:
            records[key(after)] = after
        if table == "/functions":
            if before is not None:
                self._versions.pop(before.key, None)
            if after is not None and change.entry is not None:
                self._versions[after.key] = change.entry.version
        elif table == "/instances":
            self._instances_of.replace(before, after)
        elif table == "/assignments":
            self._assignments_of.replace(before, after)
        if self._pending is not None and isinstance(after or before, Record):
            first, _ = self._pending.pop(change.path, (before, None))
            # What came and went is told to nobody, and does not pile up while nobody reads.
            if first is not None or after is not None:
                self._pending[change.path] = first, after

    def _tell(self, changed: bool) -> None:
        if changed:
            for callback in self._callbacks:
                callback()

    def _rebuild(self) -> None:
        """Copy the tables that changed; the others are shared with the last snapshot."""
        last, stale = self._snapshot, self._stale
        self._snapshot = Snapshot(
            functions=self._table("/functions", last.functions),
            nodes=self._table("/nodes", last.nodes),
            residents=self._table("/residents", last.residents),
            instances=self._table("/instances", last.instances),
            assignments=self._table("/assignments", last.assignments),
            images=self._table("/images", last.images),
            failures=self._table("/failures", last.failures),
            prefetches=self._table("/prefetches", last.prefetches),
            tokens=self._table("/tokens", last.tokens),
            leader=self._tables["/placement"].get("leader"),
            function_versions=MappingProxyType(dict(self._versions))
            if "/functions" in stale
            else last.function_versions,
            instance_index=self._instances_of.table(),
            assignment_index=self._assignments_of.table(),
        )
        self._stale = set()

    def _table(self, table: str, last: Mapping[Any, Any]) -> Mapping[Any, Any]:
        return MappingProxyType(dict(self._tables[table])) if table in self._stale else last


class _Index(Generic[_R]):
    """Records by function, each in the order of their ids; what did not change is shared."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[str, _R]] = {}
        self._moved: set[str] = set()
        self._table: Mapping[str, tuple[_R, ...]] = MappingProxyType({})

    def replace(self, before: _R | None, after: _R | None) -> None:
        if before is not None:
            self._moved.add(before.function)
            self._groups[before.function].pop(before.instance_id, None)
        if after is not None:
            self._moved.add(after.function)
            self._groups.setdefault(after.function, {})[after.instance_id] = after

    def table(self) -> Mapping[str, tuple[_R, ...]]:
        if self._moved:
            made = dict(self._table)
            for key in self._moved:
                group = self._groups.get(key)
                if group:
                    made[key] = tuple(sorted(group.values(), key=lambda r: r.instance_id))
                else:
                    self._groups.pop(key, None)
                    made.pop(key, None)
            self._table = MappingProxyType(made)
            self._moved = set()
        return self._table


def _table_of(path: str) -> str:
    return "/" + path.split("/", 2)[1]


def _decoded(cls: type, entry: Entry) -> Any:
    """The record, or None for one that cannot be read: it is said once and then passed over."""
    try:
        return decode(cls, entry.value)
    except BadRequest as error:
        _log.warning("record_unreadable", path=entry.path, cause=error.cause)
        return None


def _by_function(records: Iterable[_R]) -> Mapping[str, tuple[_R, ...]]:
    index: dict[str, list[_R]] = {}
    for record in sorted(records, key=lambda r: r.instance_id):
        index.setdefault(record.function, []).append(record)
    return MappingProxyType({key: tuple(value) for key, value in index.items()})
