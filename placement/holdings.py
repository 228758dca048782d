"""Which node holds how much of each checkpoint, who counts its memory, and who loads it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from stoker.placement.estimate import missing_bytes, pool_bytes
from stoker.placement.fleet_rows import Floats, Ints, Rows
from stoker.placement.link_queues import Link
from stoker.placement.records import CheckpointRef, ResidentRecord

_NONE = np.zeros(0, np.int64)


@dataclass(slots=True)
class _Load:
    """A checkpoint on its way to one node, for `instances`; `peer` is the row that sends it."""

    checkpoint: CheckpointRef
    peer: int | None
    deadline: float
    instances: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Held:
    """Of one checkpoint, by row: (DRAM, SSD) bytes, how many count its memory, its load."""

    bytes: dict[int, tuple[int, int]] = field(default_factory=dict)
    pins: dict[int, int] = field(default_factory=dict)
    loads: dict[int, _Load] = field(default_factory=dict)
    columns: tuple[Ints, Ints, Ints] | None = None


class Holdings:
    """Writes `pinned_bytes` and the queues of `rows`. Not thread-safe."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._held: dict[str, _Held] = {}
        # Which checkpoints a node holds some of, or loads.
        self._on_row: dict[int, set[str]] = {}

    def columns(self, digest: str) -> tuple[Ints, Ints, Ints]:
        """(rows, DRAM bytes, SSD bytes) of the nodes that hold some of it."""
        held = self._held.get(digest)
        if held is None:
            return _NONE, _NONE, _NONE
        if held.columns is None:
            table = np.array([(row, *tiers) for row, tiers in held.bytes.items()], np.int64)
            table = table.reshape(-1, 3)
            held.columns = table[:, 0], table[:, 1], table[:, 2]
        return held.columns

    def senders(self, checkpoint: CheckpointRef) -> tuple[Ints, Floats]:
        """(rows, bytes per second) of the nodes that hold all of it and can send it."""
        rows = self._rows
        held, dram, ssd = self.columns(checkpoint.digest)
        whole = (np.maximum(dram, ssd) >= checkpoint.weight_bytes) & rows.present[held]
        held, dram = held[whole], dram[whole]
        rate = rows.peer_bandwidth[held]
        from_ssd = np.minimum(rate, rows.ssd_bandwidth[held])
        return held, np.where(dram >= checkpoint.weight_bytes, rate, from_ssd)

    def in_memory(self, checkpoint: CheckpointRef) -> int:
        """How many nodes have all of it in memory."""
        _, dram, _ = self.columns(checkpoint.digest)
        return int((dram >= checkpoint.weight_bytes).sum())

    def on_row(self, row: int) -> Iterator[tuple[str, int, int]]:
        """(digest, DRAM bytes, SSD bytes) of what the node holds, or loads."""
        for digest in sorted(self._on_row.get(row, ())):
            yield digest, *self.tiers(row, digest)

    def tiers(self, row: int, digest: str) -> tuple[int, int]:
        """The (DRAM, SSD) bytes that the node holds of a checkpoint."""
        held = self._held.get(digest)
        return held.bytes.get(row, (0, 0)) if held else (0, 0)

    def loads(self, row: int, digest: str) -> bool:
        """Whether it is on its way there for an instance."""
        held = self._held.get(digest)
        return held is not None and row in held.loads

    def used_bytes(self, row: int) -> int:
        """What is taken of the node's memory, what is on its way there for instances included."""
        used = 0
        for digest in self._on_row.get(row, ()):
            held = self._held[digest]
            load = held.loads.get(row)
            used += pool_bytes(load.checkpoint) if load else held.bytes.get(row, (0, 0))[0]
        return used

    def pinning(self, digest: str) -> list[int]:
        """The rows where an assignment already counts its memory."""
        held = self._held.get(digest)
        return list(held.pins) if held else []

    def loading(self, digest: str) -> list[int]:
        """The rows to which it is on its way."""
        held = self._held.get(digest)
        return list(held.loads) if held else []

    def digests(self, rows: Iterable[int]) -> set[str]:
        """What is on one of the rows, or on its way there."""
        return set().union(*(self._on_row.get(row, ()) for row in rows))

    def fits(self, row: int, checkpoint: CheckpointRef | None) -> bool:
        """Whether the node's pool has room for it beside what is pinned there."""
        if checkpoint is None:
            return True
        held = self._held.get(checkpoint.digest)
        more = 0 if held and row in held.pins else pool_bytes(checkpoint)
        return int(self._rows.pinned_bytes[row]) + more <= int(self._rows.pool_bytes[row])

    def put(self, record: ResidentRecord, now: float) -> None:
        held = self._held.setdefault(record.digest, _Held())
        row, tiers = self._rows.hold(record.node_id), (record.dram_bytes, record.ssd_bytes)
        before = held.bytes.get(row)
        if before is not None:
            self._rows.release(row)
        if before != tiers:
            held.bytes[row] = tiers
            self._on_row.setdefault(row, set()).add(record.digest)
            self._changed(held, row, now)

    def drop(self, record: ResidentRecord, now: float) -> None:
        held, row = self._held.get(record.digest), self._rows.number(record.node_id)
        if held is None or row is None or held.bytes.pop(row, None) is None:
            return
        self._changed(held, row, now)
        self._left(row, record.digest, held)
        self._rows.release(row)
        self._tidy(record.digest)

    def pin(self, row: int, checkpoint: CheckpointRef) -> None:
        held = self._held.setdefault(checkpoint.digest, _Held())
        held.pins[row] = held.pins.get(row, 0) + 1
        if held.pins[row] == 1:
            self._rows.pinned_bytes[row] += pool_bytes(checkpoint)

    def unpin(self, row: int, checkpoint: CheckpointRef) -> None:
        held = self._held[checkpoint.digest]
        held.pins[row] -= 1
        if held.pins[row] == 0:
            del held.pins[row]
            self._rows.pinned_bytes[row] -= pool_bytes(checkpoint)
        self._tidy(checkpoint.digest)

    def begin(
        self,
        row: int,
        checkpoint: CheckpointRef,
        instance_id: str,
        source: str,
        now: float,
        deadline: float,
    ) -> None:
        """An instance waits for it; `source` is the node that sends it, if it is a peer."""
        held = self._held.setdefault(checkpoint.digest, _Held())
        load = held.loads.get(row)
        if load is None:
            peer = self._rows.hold(source) if source else None
            load = held.loads[row] = _Load(checkpoint, peer, deadline)
            self._on_row.setdefault(row, set()).add(checkpoint.digest)
        load.deadline = min(load.deadline, deadline)
        load.instances.add(instance_id)
        self._queue(held, row, load, now)
        to_device = checkpoint.weight_bytes / float(self._rows.device_bandwidth[row])
        if to_device > 0.0:
            self._rows.queues.note(Link.DEVICE, row, instance_id, to_device, now, deadline)

    def end(self, row: int, checkpoint: CheckpointRef, instance_id: str, now: float) -> None:
        """The instance waits for it no longer."""
        held, queues = self._held[checkpoint.digest], self._rows.queues
        load = held.loads[row]
        load.instances.discard(instance_id)
        queues.forget(Link.DEVICE, row, instance_id, now)
        if load.instances:
            return
        del held.loads[row]
        self._left(row, checkpoint.digest, held)
        queues.forget(Link.SSD, row, checkpoint.digest, now)
        queues.forget(Link.NET, row, checkpoint.digest, now)
        if load.peer is not None:
            queues.forget(Link.OUT, load.peer, (row, checkpoint.digest), now)
            self._rows.release(load.peer)
        self._tidy(checkpoint.digest)

    def _left(self, row: int, digest: str, held: _Held) -> None:
        if row not in held.bytes and row not in held.loads:
            self._on_row[row].discard(digest)
            if not self._on_row[row]:
                del self._on_row[row]

    def _changed(self, held: _Held, row: int, now: float) -> None:
        held.columns = None
        load = held.loads.get(row)
        if load is not None:
            self._queue(held, row, load, now)

    def _queue(self, held: _Held, row: int, load: _Load, now: float) -> None:
        """Put what is still missing into the queues of the links that it takes."""
        rows, digest = self._rows, load.checkpoint.digest
        in_dram, on_ssd = held.bytes.get(row, (0, 0))
        ssd, afar = missing_bytes(load.checkpoint.weight_bytes, in_dram, on_ssd)
        self._note(Link.SSD, row, digest, ssd, float(rows.ssd_bandwidth[row]), load, now)
        incoming = float(rows.store_bandwidth[row])
        if load.peer is not None:
            outgoing = self._rate_of(load.peer, held, load.checkpoint)
            incoming = min(float(rows.peer_bandwidth[row]), outgoing)
            self._note(Link.OUT, load.peer, (row, digest), afar, outgoing, load, now)
        self._note(Link.NET, row, digest, afar, incoming, load, now)

    def _rate_of(self, sender: int, held: _Held, checkpoint: CheckpointRef) -> float:
        rate = float(self._rows.peer_bandwidth[sender])
        in_dram, _ = held.bytes.get(sender, (0, 0))
        whole = in_dram >= checkpoint.weight_bytes
        return rate if whole else min(rate, float(self._rows.ssd_bandwidth[sender]))

    def _note(
        self,
        link: Link,
        row: int,
        key: str | tuple[int, str],
        byte_count: int,
        bandwidth: float,
        load: _Load,
        now: float,
    ) -> None:
        seconds = byte_count / bandwidth
        if seconds > 0.0:
            self._rows.queues.note(link, row, key, seconds, now, load.deadline)
        else:
            self._rows.queues.forget(link, row, key, now)

    def _tidy(self, digest: str) -> None:
        held = self._held[digest]
        if not (held.bytes or held.pins or held.loads):
            del self._held[digest]
