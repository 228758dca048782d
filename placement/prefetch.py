"""What nodes bring into memory before anybody calls it. Pure.

    read    what lies on a node's own disk, while its memory has room that nobody needs
    fetch   what fewer nodes hold than pay, from a peer or from where it was deployed

Memory that nobody needs costs nothing, and a disk that nobody waits for neither: so what is most
likely to be called next is read, and nothing else goes for it. A second copy helps only those who
come while the first one's node is full, so it counts less than the first.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from stoker.placement.estimate import pool_bytes
from stoker.placement.fleet import Fleet
from stoker.placement.records import CheckpointRef
from stoker.placement.scale import Demand

# So many checkpoints a node is told at once.
ORDER_MAXIMUM = 4
# So many nodes and functions are looked at in one piece, and so many pieces each second.
NODES_AT_ONCE = 16
FUNCTIONS_AT_ONCE = 32
PIECES = 4
# What was never called counts as called so often, per second: it was deployed to be called.
NEVER_CALLED_RATE = 1.0 / 86400.0
# What one more copy is worth, by that of the copy before it.
COPY_SHARE = 0.5
# A copy on one more node pays if so many seconds bring a call that counts, by that share.
REPLICA_SECONDS = 600.0

Order = tuple[CheckpointRef, ...]
DemandOf = Callable[[str], Demand]


def call_rate(demand: Demand, now: float) -> float:
    """Calls per second to be expected; who waits now counts as one that comes within a second."""
    return demand.rate(now) + demand.queued


def replicas(rate: float) -> int:
    """How many nodes should hold what is called so often."""
    calls = max(1.0, rate * REPLICA_SECONDS)
    return 1 + math.floor(math.log(calls) / -math.log(COPY_SHARE))


class Prefetching:
    """Renews the orders of all nodes, a piece at a time. No I/O and no clock."""

    def __init__(self) -> None:
        self._nodes = _Rotation(NODES_AT_ONCE)
        self._functions = _Rotation(FUNCTIONS_AT_ONCE)

    def pieces(self, fleet: Fleet) -> int:
        """How many times to renew in a second."""
        return max(1, min(PIECES, math.ceil(len(fleet.nodes) / NODES_AT_ONCE)))

    def renew(
        self, fleet: Fleet, demand_of: DemandOf, orders: Mapping[str, Order], now: float
    ) -> dict[str, Order]:
        """The orders that change, by node; `orders` are those that hold until now."""
        node_ids = self._nodes.next(fleet.nodes)
        keys = self._functions.next(fleet.functions)
        made = prefetches(fleet, demand_of, orders, node_ids, keys, now)
        return {node: order for node, order in made.items() if order != orders.get(node, ())}


def prefetches(
    fleet: Fleet,
    demand_of: DemandOf,
    orders: Mapping[str, Order],
    node_ids: Sequence[str],
    keys: Iterable[str],
    now: float,
) -> dict[str, Order]:
    """What each of the nodes brings next, the first thing first.

    `orders` is what every node was told before. Of the functions in `keys` is seen whether more
    nodes should hold their weights.
    """
    draft = _Draft(fleet, demand_of, orders, node_ids, now)
    draft.keep()
    draft.fetch(keys)
    draft.read()
    return draft.orders()


@dataclass(slots=True)
class _Desk:
    """One node of the draft: the bytes that are free in its memory, and its order so far."""

    row: int
    room: int
    unread: dict[str, int]
    order: list[CheckpointRef]

    def lacks(self, digest: str) -> bool:
        return all(ref.digest != digest for ref in self.order)


class _Draft:
    def __init__(
        self,
        fleet: Fleet,
        demand_of: DemandOf,
        orders: Mapping[str, Order],
        node_ids: Sequence[str],
        now: float,
    ) -> None:
        self._fleet = fleet
        self._demand_of = demand_of
        self._now = now
        self._before = orders
        self._rates: dict[str, float] = {}
        self._desks: dict[str, _Desk] = {}
        for node_id in node_ids:
            row = fleet.rows.number(node_id)
            if row is not None:
                room = int(fleet.rows.pool_bytes[row]) - fleet.holdings.used_bytes(row)
                self._desks[node_id] = _Desk(row, room, dict(self._unread(row)), [])
        # How many nodes were told to bring a checkpoint.
        self._told: Counter[str] = Counter()
        for node_id, order in orders.items():
            if order and node_id not in self._desks:
                self._told.update([ref.digest for ref in order])

    def keep(self) -> None:
        """What a node fetches or has begun to read stays first."""
        for node_id, desk in self._desks.items():
            for ref in self._before.get(node_id, ()):
                begun = self._missing(desk.row, ref) < ref.weight_bytes
                if self._deployed(ref) and (begun or ref.digest not in desk.unread):
                    self._add(desk, ref)

    def fetch(self, keys: Iterable[str]) -> None:
        """What too few nodes hold goes where there is most room."""
        nodes = len(self._fleet.nodes)
        for key in keys:
            ref = self._fleet.functions[key].checkpoint
            if ref is None or self._holders(ref) >= min(nodes, replicas(self._rate(ref.digest))):
                continue
            able = [
                desk
                for desk in self._desks.values()
                if ref.digest not in desk.unread
                and len(desk.order) < ORDER_MAXIMUM
                and not self._holds(desk.row, ref)
                and desk.lacks(ref.digest)
            ]
            roomiest = max(able, key=lambda desk: desk.room, default=None)
            if roomiest is not None:
                self._add(roomiest, ref)

    def read(self) -> None:
        """In turns, so that what is worth most is read at the same time by several nodes."""
        open_desks = [desk for desk in self._desks.values() if desk.unread]
        while open_desks:
            open_desks = [
                desk
                for desk in open_desks
                if len(desk.order) < ORDER_MAXIMUM
                and (ref := self._next(desk)) is not None
                and self._add(desk, ref)
            ]

    def orders(self) -> dict[str, Order]:
        return {node_id: tuple(desk.order) for node_id, desk in self._desks.items()}

    def _next(self, desk: _Desk) -> CheckpointRef | None:
        best: tuple[float, str] | None = None
        for digest, missing_bytes in desk.unread.items():
            if missing_bytes > desk.room or not desk.lacks(digest):
                continue
            ref = self._fleet.checkpoints[digest]
            copies = self._fleet.holdings.in_memory(ref) + self._told[digest]
            worth = max(self._rate(digest), NEVER_CALLED_RATE) * COPY_SHARE**copies
            key = (-worth * ref.weight_bytes / missing_bytes, digest)
            if best is None or key < best:
                best = key
        return self._fleet.checkpoints[best[1]] if best else None

    def _add(self, desk: _Desk, ref: CheckpointRef) -> bool:
        """Put it at the end of the order, if it is missing there and has room."""
        missing = self._missing(desk.row, ref)
        if missing <= 0 or missing > desk.room or self._fleet.holdings.loads(desk.row, ref.digest):
            return False
        desk.order.append(ref)
        desk.room -= missing
        self._told[ref.digest] += 1
        return True

    def _unread(self, row: int) -> Iterator[tuple[str, int]]:
        """(digest, missing bytes) of what is whole on its disk, deployed, and not in memory."""
        checkpoints = self._fleet.checkpoints
        for digest, dram, ssd in self._fleet.holdings.on_row(row):
            ref = checkpoints.get(digest)
            on_disk = ref is not None and dram < ref.weight_bytes <= ssd
            if ref is not None and on_disk and not self._fleet.holdings.loads(row, digest):
                yield digest, self._missing(row, ref)

    def _missing(self, row: int, ref: CheckpointRef) -> int:
        dram, _ = self._fleet.holdings.tiers(row, ref.digest)
        return pool_bytes(ref) if dram <= 0 else ref.weight_bytes - dram

    def _holds(self, row: int, ref: CheckpointRef) -> bool:
        return max(self._fleet.holdings.tiers(row, ref.digest)) >= ref.weight_bytes

    def _holders(self, ref: CheckpointRef) -> int:
        """The nodes that hold all of it or fetch it."""
        return len(self._fleet.holdings.senders(ref)[0]) + self._told[ref.digest]

    def _deployed(self, ref: CheckpointRef) -> bool:
        return self._fleet.checkpoints.get(ref.digest) == ref

    def _rate(self, digest: str) -> float:
        """How often the functions with these weights are called, per second."""
        rate = self._rates.get(digest)
        if rate is None:
            owners = self._fleet.owners.get(digest, ())
            rate = sum(call_rate(self._demand_of(key), self._now) for key in owners)
            self._rates[digest] = rate
        return rate


class _Rotation:
    """So many of all there are, then the next ones."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._first = 0

    def next(self, every: Mapping[str, object]) -> list[str]:
        total = len(every)
        first = self._first if self._first < total else 0
        self._first = first + self._count
        return list(itertools.islice(every, first, first + self._count))
