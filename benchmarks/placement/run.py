"""How long placement takes to decide, and how good its decisions are.

    python benchmarks/placement/run.py [--decisions 5000] [--data FOLDER] [--seeds 10]

Decisions are timed on one core; how good they are is simulated (`w2.py`), with the lengths of real
data sets where --data names their folder, else as they are documented. Each part returns its
figures and prints its table; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import decisions
import large
import w2

ROOT = Path(__file__).resolve().parents[2]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=5000, help="timed ones, for each figure")
    parser.add_argument("--data", type=Path, help="folder of the data sets' lengths")
    parser.add_argument("--seeds", type=int, default=10, help="of each simulated cell")
    parser.add_argument("--minutes", type=float, default=10.0, help="of virtual time, of each")
    parser.add_argument("--rps", type=float, nargs="+", default=list(w2.RATES))
    parser.add_argument("--processes", type=int, default=1, help="that simulate")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "build" / "benchmarks" / "placement.json"
    )
    arguments = parser.parse_args()
    if arguments.decisions < 100:
        parser.error("--decisions must be at least 100")
    return arguments


def deciding(times: int) -> dict[str, object]:
    """Time, memory and growth of decisions."""
    shape = decisions.TARGET
    print(f"{shape.nodes} nodes, {shape.models} models, {shape.instances} instances, ms:")
    rows = {
        "a node has room": decisions.decisions(shape, times),
        "an idle instance must go": decisions.full_decisions(shape, times),
        "a busy instance must move": decisions.migrating_decisions(shape, times),
    }
    changed, megabytes = decisions.updates(shape, times)
    rows["a node's record changes"] = changed
    for name, found in rows.items():
        print(f"  {name:28} p50 {found.p50:7.3f}  p99 {found.p99:7.3f}  {found.per_second:8.0f}/s")
    sweep = decisions.sweep_milliseconds(shape)
    print(f"  the whole cluster, once      {sweep:.1f}; view and columns hold {megabytes:.0f} MB")
    print("nodes (4 instances each, 1000 models), p99 ms:")
    curve = {}
    for nodes in decisions.CURVE:
        found = decisions.decisions(
            decisions.Shape(nodes, shape.models, 4 * nodes, shape.places), max(100, times // 5)
        )
        curve[str(nodes)] = round(found.p99, 3)
        print(f"  {nodes:6} {found.p99:8.3f}")
    room, full, moving = list(rows.values())[:3]
    return {
        "decision_p99_ms": round(room.p99, 3),
        "decision_full_p99_ms": round(full.p99, 3),
        "decision_migrating_p99_ms": round(moving.p99, 3),
        "decisions_per_second": round(room.per_second),
        "update_p99_ms": round(changed.p99, 3),
        "sweep_ms": round(sweep, 1),
        "memory_mb": round(megabytes),
        "decision_p99_ms_by_nodes": curve,
    }


def simulating(arguments: argparse.Namespace) -> dict[str, object]:
    """W2 under every policy, and how long a large cluster takes to simulate."""
    cells = w2.run(
        w2.every_cell(arguments.rps),
        arguments.seeds,
        arguments.minutes,
        arguments.data,
        arguments.processes,
    )
    w2.show(cells)
    return {**w2.figures(cells), **large.figures()}


def main() -> int:
    arguments = parse()
    figures = {**deciding(arguments.decisions), **simulating(arguments)}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(figures, indent=2))
    print(json.dumps({"benchmark": "placement", "figures": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
