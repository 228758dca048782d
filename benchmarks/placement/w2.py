"""W2: ServerlessLLM's evaluation, simulated under its policies, its baselines' and Stoker's.

    python benchmarks/placement/w2.py [--data FOLDER] [--seeds 10] [--rps 0.8 1.4]

Time is virtual and everything drawn by seed, so the same arguments give the same figures anywhere.
The same requests meet every policy. A figure is the median of the seeds, with the least and the
greatest beside it. A cell is saturated where the requests' bare running time takes four fifths of
all devices or more: then whoever waits, waits for others' requests, whatever the policy. Such a
cell is named and not simulated.

`at once` is `stoker` where the first calls come in the moment in which the models are deployed.
`instant` is no policy: requests take the next free devices in the order in which they come, and
starts take no time. What it leaves to wait, bursts do, and no policy can take it away.
"""

from __future__ import annotations

import argparse
import heapq
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from worlds import (
    DEPLOYED_SECONDS,
    MODELS,
    TIMEOUT_SECONDS,
    Model,
    lengths_of,
    mean_seconds,
    w2_cluster,
)

from stoker.placement.simulate_metrics import Outcome
from stoker.placement.simulate_parts import Function, Request
from stoker.placement.simulate_run import Conditions, simulate
from stoker.placement.simulate_workload import drawn_requests

ROOT = Path(__file__).resolve().parents[2]
POLICIES = ("random", "shepherd", "serverlessllm", "stoker")
AT_ONCE, INSTANT = "at once", "instant"
SHOWN = (*POLICIES, AT_ONCE, INSTANT)
DATASETS = ("gsm8k", "sharegpt")
VARIATIONS = (1.0, 3.0, 8.0)
RATES = (0.8, 1.4)
DEVICES = 16
SATURATED_SHARE = 0.8
# The setting in which the published factors between policies were measured.
PUBLISHED = ("opt-6.7b", "gsm8k", 8.0, 1.4)


@dataclass(frozen=True, slots=True)
class Cell:
    model: str
    dataset: str
    variation: float
    rate: float

    @property
    def name(self) -> str:
        return f"{self.model} {self.dataset} CV {self.variation:g} {self.rate:g}/s"


def run_cell(cell: Cell, seeds: Sequence[int], minutes: float, data: Path | None) -> dict[str, Any]:
    """Every policy on every seed of one cell, unless it is saturated."""
    model = next(m for m in MODELS if m.name == cell.model)
    lengths = lengths_of(cell.dataset, data)
    load = cell.rate * mean_seconds(model, lengths) * model.devices / DEVICES
    if load >= SATURATED_SHARE:
        return {**asdict(cell), "load": load, "saturated": True, "policies": {}}
    cluster = w2_cluster(model)

    def workload(functions: Sequence[Function], seed: int) -> list[Request]:
        return drawn_requests(
            functions,
            lengths,
            rate=cell.rate,
            variation=cell.variation,
            seconds=minutes * 60.0,
            seed=seed,
        )

    rows = {
        policy: [
            simulate(cluster, workload, policy, seed, conditions_of(policy, model)).figures()
            for seed in seeds
        ]
        for policy in POLICIES
    }
    at_once = replace(conditions_of("stoker", model), deployed_seconds=0.0)
    rows[AT_ONCE] = [
        simulate(cluster, workload, "stoker", seed, at_once).figures() for seed in seeds
    ]
    rows[INSTANT] = [
        instant(workload(cluster.made_functions(), seed), DEVICES // model.devices)
        for seed in seeds
    ]
    return {**asdict(cell), "load": load, "saturated": False, "policies": rows}


def conditions_of(policy: str, model: Model) -> Conditions:
    own = policy == "stoker"
    return Conditions(
        idle_seconds=None if own else model.load_seconds,
        timeout_seconds=TIMEOUT_SECONDS,
        deployed_seconds=DEPLOYED_SECONDS,
    )


def instant(requests: Sequence[Request], places: int) -> dict[str, Any]:
    """First come, first served, by so many places, with starts that take no time."""
    outcome, free_at = Outcome(), [0.0] * places
    for request in requests:
        begin = max(request.arrived_at, free_at[0])
        outcome.record(request.function.record.key, begin - request.arrived_at, "warm")
        heapq.heapreplace(free_at, begin + request.left_seconds)
    return outcome.figures()


def ratios(cell: Mapping[str, Any], slower: str, faster: str, figure: str) -> list[float]:
    """How many times as long the one takes as the other, of each seed."""
    pairs = zip(cell["policies"][slower], cell["policies"][faster], strict=True)
    return [
        before[figure] / after[figure]
        if after[figure] > 0
        else (1.0 if before[figure] == 0 else 1e3)
        for before, after in pairs
    ]


def figures(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The published setting by its factors, and the worst cell that is not saturated."""
    found: dict[str, Any] = {}
    published = next((c for c in cells if _is_published(c) and c["policies"]), None)
    if published is not None:
        for name, slower, faster in (
            ("w2_p99_vs_serverlessllm", "serverlessllm", "stoker"),
            ("w2_p99_vs_shepherd", "shepherd", "stoker"),
            ("w2_p99_vs_random", "random", "stoker"),
            ("w2_at_once_p99_vs_serverlessllm", "serverlessllm", AT_ONCE),
            ("w2_serverlessllm_p99_vs_shepherd", "shepherd", "serverlessllm"),
            ("w2_serverlessllm_p99_vs_random", "random", "serverlessllm"),
        ):
            values = ratios(published, slower, faster, "start_seconds_p99")
            found[name] = statistics.median(values)
            found[f"{name}_spread"] = [min(values), max(values)]
        for policy in ("serverlessllm", "shepherd", "stoker"):
            for kind in ("migrations", "preemptions"):
                values = [row[kind] for row in published["policies"][policy]]
                found[f"w2_{policy}_{kind}"] = statistics.median(values)
    calm = [cell for cell in cells if not cell["saturated"]]
    found["w2_cells"], found["w2_cells_not_saturated"] = len(cells), len(calm)
    for prefix, policy in (("w2", "stoker"), ("w2_at_once", AT_ONCE)):
        for name in ("p99", "mean"):
            figure = f"start_seconds_{name}"
            medians = [
                statistics.median(ratios(cell, "serverlessllm", policy, figure)) for cell in calm
            ]
            if medians:
                found[f"{prefix}_worst_{name}_vs_serverlessllm"] = min(medians)
                found[f"{prefix}_median_{name}_vs_serverlessllm"] = statistics.median(medians)
    late = "start_seconds_p99"
    found["w2_cells_p99_by_1_3"] = _cells_by(calm, "stoker", late, 1.3)
    found["w2_cells_mean_better"] = _cells_by(calm, "stoker", "start_seconds_mean", 1.0)
    found["w2_cells_p99_by_1_3_possible"] = _cells_by(calm, INSTANT, late, 1.3)
    return found


def _cells_by(cells: Sequence[Mapping[str, Any]], policy: str, figure: str, factor: float) -> int:
    """In how many cells the policy is so much better than `serverlessllm`, by the median."""
    return sum(
        statistics.median(ratios(cell, "serverlessllm", policy, figure)) >= factor for cell in cells
    )


def _is_published(cell: Mapping[str, Any]) -> bool:
    return (cell["model"], cell["dataset"], cell["variation"], cell["rate"]) == PUBLISHED


def show(cells: Sequence[Mapping[str, Any]]) -> None:
    print(
        f"{'cell':36s} {'load':>5s} " + " ".join(f"{p + ' p99':>17s} {'mean':>6s}" for p in SHOWN)
    )
    for cell in cells:
        name = Cell(cell["model"], cell["dataset"], cell["variation"], cell["rate"]).name
        parts = []
        for policy in SHOWN if cell["policies"] else ():
            rows = cell["policies"][policy]
            late = statistics.median(row["start_seconds_p99"] for row in rows)
            mean = statistics.median(row["start_seconds_mean"] for row in rows)
            parts.append(f"{late:17.2f} {mean:6.2f}")
        print(f"{name:36s} {cell['load']:5.2f} " + " ".join(parts or ["saturated"]))
    print("Start-up latency: medians over seeds, in seconds.")


def run(
    cells: Sequence[Cell], seeds: int, minutes: float, data: Path | None, processes: int
) -> list[dict[str, Any]]:
    arguments = [(cell, range(1, seeds + 1), minutes, data) for cell in cells]
    if processes == 1:
        return [run_cell(*one) for one in arguments]
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(run_cell, *zip(*arguments, strict=True)))


def every_cell(rates: Sequence[float]) -> list[Cell]:
    return [
        Cell(model.name, dataset, variation, rate)
        for model in MODELS
        for dataset in DATASETS
        for variation in VARIATIONS
        for rate in rates
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of the data sets' lengths")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rps", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "build" / "benchmarks" / "placement-w2.json"
    )
    arguments = parser.parse_args()
    cells = run(
        every_cell(arguments.rps),
        arguments.seeds,
        arguments.minutes,
        arguments.data,
        arguments.processes,
    )
    show(cells)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(cells, indent=1))
    print(f"written: {arguments.output}", file=sys.stderr)
    print(json.dumps({"benchmark": "placement-w2", "figures": figures(cells)}))


if __name__ == "__main__":
    main()
