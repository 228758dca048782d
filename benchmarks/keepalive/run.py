"""Replays W1, a zoo of models, through the keep-alive policies, all with the same memory.

    python benchmarks/keepalive/run.py [--trace servegen_client_rates.csv.gz] [--days 7]

Time is virtual, so the same arguments give the same figures on any machine. Each seed draws the
functions' sizes, their requests and, with --trace, the clients whose rates they follow. A table
shows the median of the seeds. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import policies
import traces
from report import figures, show
from zoo import Zoo

from stoker.placement.replay import Outcome

ROOT = Path(__file__).resolve().parents[2]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path, help="rates of real clients (ServeGen, csv.gz)")
    parser.add_argument("--days", type=float, default=7.0)
    parser.add_argument("--functions", type=int, default=90)
    parser.add_argument("--functions-per-model", type=int, default=1)
    parser.add_argument("--per-minute", type=float, default=10.0, help="requests, on average")
    parser.add_argument(
        "--memory",
        type=float,
        nargs="+",
        default=[0.25, 0.15, 0.4],
        help="share of what all functions need at once; the first is the figures'",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--output", type=Path, default=ROOT / "build" / "benchmarks" / "keepalive.json"
    )
    arguments = parser.parse_args()
    if min(arguments.days, arguments.functions, arguments.per_minute, *arguments.memory) <= 0:
        parser.error("--days, --functions, --per-minute and --memory must be positive")
    return arguments


def measured(outcome: Outcome, end: float) -> dict[str, float]:
    """One replay's row of the table, and what stands behind it."""
    waits = sorted(outcome.waits)

    def percentile(share: float) -> float:
        return waits[min(len(waits) - 1, int(share * len(waits)))]

    return {
        **{f"from_{rung.name.lower()}": outcome.starts[rung] for rung in sorted(outcome.starts)},
        "cold_starts": outcome.cold_starts(),
        "all_starts": outcome.all_starts(),
        "cold_share": outcome.cold_starts() / len(waits),
        "start_seconds_p50": percentile(0.50),
        "start_seconds_p95": percentile(0.95),
        "start_seconds_p99": percentile(0.99),
        "start_seconds_mean": statistics.fmean(waits),
        "queued": outcome.queued,
        "prewarms": outcome.prewarms,
        "evictions": outcome.evictions,
        "made_bytes": outcome.made_bytes,
        "mean_bytes": outcome.byte_seconds / end,
        "byte_seconds": outcome.byte_seconds,
        "peak_bytes": outcome.peak_bytes,
        "resident_over_busy": outcome.serving_seconds / outcome.busy_seconds,
    }


def replays(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Every policy at every memory size, for one seed."""
    ladders = Zoo(arguments.functions, arguments.functions_per_model, seed).ladders()
    if arguments.trace is None:
        loads = traces.synthetic(arguments.functions, arguments.days, seed)
    else:
        loads = traces.recorded(arguments.trace, arguments.functions, arguments.days, seed)
    found = traces.requests(list(ladders), loads, arguments.per_minute, seed)
    end = arguments.days * traces.DAY_SECONDS
    whole_bytes = sum(ladder.byte_count for ladder in ladders.values())
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for share in arguments.memory:
        capacity = int(share * whole_bytes)
        rows[str(share)] = {"capacity": {"bytes": capacity}}
        first = share == arguments.memory[0]
        for name, outcome in policies.outcomes(ladders, found, capacity, end, priced=first):
            rows[str(share)][name] = measured(outcome, end)
            print(f"seed {seed}  memory {share:g}  {name}", file=sys.stderr, flush=True)
    return {"seed": seed, "trace": traces.describe(found, end), "rows": rows}


def medians(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = {name: None for sample in samples for name in sample}
    return {name: statistics.median(sample.get(name, 0.0) for sample in samples) for name in names}


def main() -> int:
    arguments = parse()
    runs = [replays(arguments, seed) for seed in arguments.seeds]
    described = medians([run["trace"] for run in runs])
    tables = {
        share: {
            name: medians([run["rows"][share][name] for run in runs])
            for name in runs[0]["rows"][share]
        }
        for share in map(str, arguments.memory)
    }
    show(described, tables)
    result = figures(tables[str(arguments.memory[0])])
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    kept = {
        "benchmark": "keepalive",
        "settings": {name: str(value) for name, value in vars(arguments).items()},
        "figures": result,
        "trace": described,
        "medians": tables,
        "runs": runs,
    }
    arguments.output.write_text(json.dumps(kept, indent=1) + "\n")
    print(json.dumps({"benchmark": "keepalive", "figures": result}), flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
