"""One row of numbers for each node. A row keeps its number as long as something refers to it."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from stoker.placement.link_queues import LinkQueues

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_ROWS_FIRST = 16
_COLUMNS: dict[str, type] = {
    "present": np.bool_,
    "rank": np.int64,
    "slots": np.int64,
    "slots_used": np.int64,
    "spares": np.int64,
    "pool_bytes": np.int64,
    "pinned_bytes": np.int64,
    "devices_free": np.int64,
    "devices": np.int64,
    "device_bytes": np.int64,
    "kind": np.int64,
    "zone": np.int64,
    "process_seconds": np.float64,
    "unready_seconds": np.float64,
    "ssd_base": np.float64,
    "store_base": np.float64,
    "peer_base": np.float64,
    "ssd_bandwidth": np.float64,
    "store_bandwidth": np.float64,
    "peer_bandwidth": np.float64,
    "contention": np.float64,
    "device_bandwidth": np.float64,
    "busy": np.int64,
    "frees_at": np.float64,
    "least_tokens": np.float64,
    "least_loss": np.float64,
    "least_priority": np.float64,
    "least_spare_priority": np.float64,
    "least_held_priority": np.float64,
}
# Until something is known.
_INFINITE = (
    "ssd_bandwidth",
    "store_bandwidth",
    "peer_bandwidth",
    "device_bandwidth",
    "frees_at",
    "least_tokens",
    "least_loss",
    "least_priority",
    "least_spare_priority",
    "least_held_priority",
)


class Rows:
    """The columns; the rows from `size` on mean nothing. `rank` is the node's place by its id.

    A load over a link takes its `base` seconds, then its bytes at the `bandwidth` in bytes per
    second, and `contention` times so much behind others. `unready_seconds` is what the process
    takes longer while the node has no warm zygote. `kind` and `zone` are codes of `kinds` and
    `zones`.

    `busy` counts the instances known to work: `frees_at` is when the first of them is expected to
    be done, `least_tokens` the smallest work that can be moved, `least_priority` the lowest of
    their functions'. `least_loss` is what the cheapest idle instance costs, and
    `least_spare_priority` the lowest of those that may be stopped, `least_held_priority` of those
    that may not, and of which nothing says that they work. Infinite: there is none.
    """

    present: Bools
    rank: Ints
    slots: Ints
    slots_used: Ints
    spares: Ints
    pool_bytes: Ints
    pinned_bytes: Ints
    devices_free: Ints
    devices: Ints
    device_bytes: Ints
    kind: Ints
    zone: Ints
    process_seconds: Floats
    unready_seconds: Floats
    ssd_base: Floats
    store_base: Floats
    peer_base: Floats
    ssd_bandwidth: Floats
    store_bandwidth: Floats
    peer_bandwidth: Floats
    contention: Floats
    device_bandwidth: Floats
    busy: Ints
    frees_at: Floats
    least_tokens: Floats
    least_loss: Floats
    least_priority: Floats
    least_spare_priority: Floats
    least_held_priority: Floats

    def __init__(self) -> None:
        self.size = 0
        self.queues = LinkQueues()
        self.kinds = Codes()
        self.zones = Codes()
        self.ids: list[str] = []
        self._names: tuple[str, ...] | None = ()
        self._number: dict[str, int] = {}
        self._uses: list[int] = []
        self._free: list[int] = []
        self._sorted: list[str] = []
        self._capacity = 0
        for name, kind in _COLUMNS.items():
            setattr(self, name, np.zeros(0, kind))

    @property
    def names(self) -> tuple[str, ...]:
        """The node of each row; the same object until a node comes."""
        if self._names is None:
            self._names = tuple(self.ids)
        return self._names

    def number(self, node_id: str) -> int | None:
        return self._number.get(node_id)

    def hold(self, node_id: str) -> int:
        """The node's row, made if need be; `release` once for each call."""
        row = self._number.get(node_id)
        if row is None:
            row = self._make(node_id)
        self._uses[row] += 1
        return row

    def release(self, row: int) -> None:
        self._uses[row] -= 1
        if self._uses[row] > 0:
            return
        node_id = self.ids[row]
        del self._number[node_id]
        place = bisect.bisect_left(self._sorted, node_id)
        del self._sorted[place]
        self.rank[self.rank > place] -= 1
        self._clear(row)
        self._free.append(row)

    def _make(self, node_id: str) -> int:
        if self._free:
            row = self._free.pop()
            self.ids[row] = node_id
        else:
            row = self.size
            self.size += 1
            self.ids.append(node_id)
            self._uses.append(0)
        if self.size > self._capacity:
            self._grow(max(_ROWS_FIRST, 2 * self._capacity))
        self._names = None
        self._number[node_id] = row
        place = bisect.bisect_left(self._sorted, node_id)
        self._sorted.insert(place, node_id)
        self._clear(row)
        self.rank[: self.size][self.rank[: self.size] >= place] += 1
        self.rank[row] = place
        return row

    def _clear(self, row: int) -> None:
        for name in _COLUMNS:
            getattr(self, name)[row] = math.inf if name in _INFINITE else 0

    def _grow(self, capacity: int) -> None:
        for name in _COLUMNS:
            setattr(self, name, np.pad(getattr(self, name), (0, capacity - self._capacity)))
        self.queues.grow(capacity)
        self._capacity = capacity


class RowSets:
    """On which rows each name stands; the names of a row are replaced as a whole."""

    def __init__(self) -> None:
        self._rows: dict[str, set[int]] = {}

    def __getitem__(self, name: str) -> list[int]:
        return list(self._rows.get(name, ()))

    def replace(self, row: int, before: Iterable[str], now: Iterable[str]) -> None:
        for name in set(before):
            self._rows[name].discard(row)
            if not self._rows[name]:
                del self._rows[name]
        for name in now:
            self._rows.setdefault(name, set()).add(row)


class Codes:
    """Small numbers for names, given in the order in which they come."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self.names: tuple[str, ...] = ()

    def __call__(self, name: str) -> int:
        if name not in self._codes:
            self._codes[name] = len(self._codes)
            self.names = tuple(self._codes)
        return self._codes[name]

    def known(self, name: str) -> int | None:
        return self._codes.get(name)

    @property
    def count(self) -> int:
        return len(self._codes)
