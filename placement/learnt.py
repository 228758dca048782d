"""What starts have taught of the next ones: of each link of each node, and of each process. Pure.

A load of n bytes over a link takes `base + n / bandwidth`: opening the checkpoint, then its bytes.
Both are fitted to the last loads; until there is one, the bandwidth is what the node says of
itself. Where other loads are under way on the link, a load takes a factor of what the queue says,
which is learnt beside it. A process takes what the function's last ones took on that node with
their weights as near as now (a template that is left there of the last start goes with the
weights), and on other nodes what they took on the whole. Where a process stands by, that is a rung
of its own: it takes what those took that did.

Medians, since one start beside a busy neighbour says little of the next.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import deque
from typing import Literal

import numpy as np

from stoker.placement.estimate import (
    PEER_BANDWIDTH_DEFAULT,
    REMOTE_BANDWIDTH_DEFAULT,
    SSD_BANDWIDTH_DEFAULT,
    process_seconds,
    unready_seconds,
)
from stoker.placement.fleet_rows import Floats, Ints, Rows
from stoker.placement.records import NodeRecord

Path = Literal["ssd", "store", "peer"]
PATHS: tuple[Path, ...] = ("ssd", "store", "peer")

# Of one function, on so many nodes; what was learnt on others before is forgotten.
NODES_MAXIMUM = 64
# So many of the last loads of a link and of the last starts of a process count.
LOADS_MAXIMUM = 10
STARTS_MAXIMUM = 5
# Loads that differ less than this in size do not tell base and bandwidth apart.
SIZES_APART = 1.25
NEWEST_SHARE = 0.3
CONTENTION_FACTORS = (0.2, 5.0)
# Where the weights are, if no process stands by: 0 in memory, 1 on the disk, 2 elsewhere.
PARKED = 3
RUNGS = 4


class Line:
    """`seconds = base + bytes / bandwidth`, through the last loads (Theil and Sen)."""

    def __init__(self) -> None:
        self._loads: deque[tuple[float, float]] = deque(maxlen=LOADS_MAXIMUM)

    def add(self, byte_count: float, seconds: float) -> None:
        self._loads.append((byte_count, seconds))

    def fit(self, stated_bandwidth: float) -> tuple[float, float]:
        """(base seconds, bandwidth in bytes per second); what is stated decides what is open."""
        slopes = [
            (later[1] - sooner[1]) / (later[0] - sooner[0])
            for sooner, later in itertools.combinations(sorted(self._loads), 2)
            if later[0] > SIZES_APART * sooner[0]
        ]
        slope = statistics.median(slopes) if slopes else 1.0 / stated_bandwidth
        bases = [seconds - byte_count * slope for byte_count, seconds in self._loads]
        base = statistics.median(bases) if bases else 0.0
        if slope <= 0.0 or base < 0.0:
            base, slope = 0.0, statistics.median(y / x for x, y in self._loads)
        return base, 1.0 / slope


class _Starts:
    """How long the last processes took, by their rung."""

    def __init__(self) -> None:
        self._last: list[deque[float]] = [deque(maxlen=STARTS_MAXIMUM) for _ in range(RUNGS)]
        self.seconds: list[float] = []

    def add(self, rung: int, seconds: float) -> None:
        self._last[rung].append(seconds)
        fresh = list(itertools.chain(*self._last[:PARKED])) or self._last[PARKED]
        every = statistics.median(fresh)
        self.seconds = [statistics.median(last) if last else every for last in self._last]

    def tells_of(self, rung: int) -> bool:
        """Whether some of them stood by, or did not, as one of that rung."""
        return any(self._last[PARKED:] if rung == PARKED else self._last[:PARKED])


class Learnt:
    """Writes the columns of `rows` that say how fast a node is. Not thread-safe."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._lines: dict[str, dict[Path, Line]] = {}
        self._contention: dict[str, float] = {}
        self._process: dict[str, dict[str, _Starts]] = {}
        self._typical: dict[str, _Starts] = {}
        self._least_process = math.inf

    def apply(self, row: int, node: NodeRecord) -> None:
        """Write what is known of the node, by its own word and by its starts."""
        rows, lines = self._rows, self._lines.get(node.node_id, {})
        rows.process_seconds[row] = process_seconds(node)
        rows.unready_seconds[row] = unready_seconds(node)
        rows.device_bandwidth[row] = node.device_bandwidth or math.inf
        rows.contention[row] = self._contention.get(node.node_id, 1.0)
        for path in PATHS:
            line = lines.get(path)
            stated = stated_bandwidth(node, path)
            base, bandwidth = line.fit(stated) if line else (0.0, stated)
            getattr(rows, f"{path}_base")[row] = base
            getattr(rows, f"{path}_bandwidth")[row] = bandwidth

    def note_load(self, node: NodeRecord, path: Path, byte_count: int, seconds: float) -> None:
        """A load that had the link to itself took so long, from the order on."""
        lines = self._lines.setdefault(node.node_id, {})
        lines.setdefault(path, Line()).add(byte_count, seconds)
        self._write(node)

    def note_contended_load(self, node: NodeRecord, ratio: float) -> None:
        """A load behind others took `ratio` times of what was predicted."""
        low, high = CONTENTION_FACTORS
        before = self._contention.get(node.node_id, 1.0)
        factor = before + NEWEST_SHARE * (min(max(before * ratio, low), high) - before)
        self._contention[node.node_id] = factor
        self._write(node)

    def note_process(self, function_key: str, node_id: str, rung: int, seconds: float) -> None:
        """A start's process took so long, from the order on; the weights aside."""
        known = self._process.setdefault(function_key, {})
        starts = known.pop(node_id, None) or _Starts()
        known[node_id] = starts
        if len(known) > NODES_MAXIMUM:
            del known[next(iter(known))]
        starts.add(rung, seconds)
        self._least_process = min(self._least_process, seconds)
        self._typical.setdefault(function_key, _Starts()).add(rung, seconds)

    def process_seconds(self, function_key: str, rung: Ints) -> Floats:
        """What a start's process will take on each row, from that rung on."""
        rows, size = self._rows, self._rows.size
        typical = self._typical.get(function_key)
        if typical is None:
            return rows.process_seconds[:size]
        found: Floats = rows.unready_seconds[:size] + np.array(typical.seconds)[rung]
        for node_id, starts in self._process[function_key].items():
            row = rows.number(node_id)
            if row is None:
                continue
            # Where nothing like it was seen there, what others took tells more.
            if starts.tells_of(rung[row]) or not typical.tells_of(rung[row]):
                found[row] = starts.seconds[rung[row]] + rows.unready_seconds[row]
        return found

    def least_process_seconds(self, rows: Ints) -> float:
        """No more than what a process of any function takes on any of these rows."""
        stated = float(self._rows.process_seconds[rows].min(initial=math.inf))
        return min(stated, self._least_process)

    def forget_function(self, function_key: str) -> None:
        self._process.pop(function_key, None)
        self._typical.pop(function_key, None)

    def forget_node(self, node_id: str) -> None:
        """A node that comes back may be another machine."""
        self._lines.pop(node_id, None)
        self._contention.pop(node_id, None)
        for known in self._process.values():
            known.pop(node_id, None)

    def _write(self, node: NodeRecord) -> None:
        row = self._rows.number(node.node_id)
        if row is not None:
            self.apply(row, node)


def stated_bandwidth(node: NodeRecord, path: Path) -> float:
    """What the node says of itself, or what is likely where it has measured nothing."""
    match path:
        case "ssd":
            return node.ssd_bandwidth or SSD_BANDWIDTH_DEFAULT
        case "store":
            return node.remote_bandwidth or REMOTE_BANDWIDTH_DEFAULT
        case "peer":
            return node.peer_bandwidth or PEER_BANDWIDTH_DEFAULT
