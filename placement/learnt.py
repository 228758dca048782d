"""What starts have taught of the next ones: of each link of each node, and of each process. Pure.

A load of n bytes over a link takes `base + n / bandwidth`: opening the checkpoint, then its bytes.
Both are fitted to what loads took, the last ones counting most; until there is one, the bandwidth
is what the node says of itself. Where other loads are under way on the link, a load takes a factor
of what the queue says, which is learnt beside it. A process takes what the function's last ones
took on that node, and elsewhere what they took on the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from stoker.placement.estimate import (
    PEER_BANDWIDTH_DEFAULT,
    REMOTE_BANDWIDTH_DEFAULT,
    SSD_BANDWIDTH_DEFAULT,
    process_seconds,
    unready_seconds,
)
from stoker.placement.fleet_rows import Floats, Rows
from stoker.placement.records import NodeRecord

Path = Literal["ssd", "store", "peer"]
PATHS: tuple[Path, ...] = ("ssd", "store", "peer")

# Of one function; what was learnt on other nodes before is forgotten.
NODES_MAXIMUM = 64
# How much a sample counts against the one after it.
KEPT_SHARE = 0.8
NEWEST_SHARE = 0.3
# The prior counts as so much of the samples: where they leave it open, it decides.
PRIOR_SHARE = 0.001
CONTENTION_FACTORS = (0.2, 5.0)


@dataclass(slots=True)
class Line:
    """`seconds = base + bytes / bandwidth`, by least squares; older samples count less."""

    prior_bandwidth: float
    weight: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def add(self, byte_count: float, seconds: float) -> None:
        for name, value in (
            ("weight", 1.0),
            ("x", byte_count),
            ("y", seconds),
            ("xx", byte_count * byte_count),
            ("xy", byte_count * seconds),
        ):
            setattr(self, name, KEPT_SHARE * getattr(self, name) + value)

    def fit(self) -> tuple[float, float]:
        """(base seconds, bandwidth in bytes per second), drawn to the prior where unsure."""
        prior_slope = 1.0 / self.prior_bandwidth
        if self.weight == 0.0:
            return 0.0, self.prior_bandwidth
        pull_base = PRIOR_SHARE * self.weight
        pull_slope = PRIOR_SHARE * self.xx
        a, b, d = self.weight + pull_base, self.x, self.xx + pull_slope
        right = self.xy + pull_slope * prior_slope
        base = max(0.0, (self.y * d - b * right) / (a * d - b * b))
        slope = (right - b * base) / d
        return base, 1.0 / slope if slope > 0.0 else self.prior_bandwidth


class Learnt:
    """Writes the columns of `rows` that say how fast a node is. Not thread-safe."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._lines: dict[str, dict[Path, Line]] = {}
        self._contention: dict[str, float] = {}
        self._process: dict[str, dict[str, float]] = {}
        self._typical: dict[str, float] = {}

    def apply(self, row: int, node: NodeRecord) -> None:
        """Write what is known of the node, by its own word and by its starts."""
        rows, lines = self._rows, self._lines.get(node.node_id, {})
        rows.process_seconds[row] = process_seconds(node)
        rows.unready_seconds[row] = unready_seconds(node)
        rows.device_bandwidth[row] = node.device_bandwidth or math.inf
        rows.contention[row] = self._contention.get(node.node_id, 1.0)
        for path in PATHS:
            line = lines.get(path)
            base, bandwidth = line.fit() if line else (0.0, stated_bandwidth(node, path))
            getattr(rows, f"{path}_base")[row] = base
            getattr(rows, f"{path}_bandwidth")[row] = bandwidth

    def note_load(self, node: NodeRecord, path: Path, byte_count: int, seconds: float) -> None:
        """A load that had the link to itself took so long, from the order on."""
        lines = self._lines.setdefault(node.node_id, {})
        line = lines.setdefault(path, Line(stated_bandwidth(node, path)))
        line.prior_bandwidth = stated_bandwidth(node, path)
        line.add(byte_count, seconds)
        self._write(node)

    def note_contended_load(self, node: NodeRecord, ratio: float) -> None:
        """A load behind others took `ratio` times of what was predicted."""
        low, high = CONTENTION_FACTORS
        before = self._contention.get(node.node_id, 1.0)
        factor = before + NEWEST_SHARE * (min(max(before * ratio, low), high) - before)
        self._contention[node.node_id] = factor
        self._write(node)

    def note_process(self, function_key: str, node_id: str, seconds: float) -> None:
        """A start's process took so long, from the order on; the weights aside."""
        known = self._process.setdefault(function_key, {})
        before = known.pop(node_id, seconds)
        known[node_id] = before + NEWEST_SHARE * (seconds - before)
        if len(known) > NODES_MAXIMUM:
            del known[next(iter(known))]
        typical = self._typical.get(function_key, seconds)
        self._typical[function_key] = typical + NEWEST_SHARE * (seconds - typical)

    def process_seconds(self, function_key: str) -> Floats:
        """What a start's process will take on each row."""
        rows, size = self._rows, self._rows.size
        typical = self._typical.get(function_key)
        if typical is None:
            return rows.process_seconds[:size]
        found = rows.unready_seconds[:size] + typical
        for node_id, seconds in self._process[function_key].items():
            row = rows.number(node_id)
            if row is not None:
                found[row] = seconds + rows.unready_seconds[row]
        return found

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
