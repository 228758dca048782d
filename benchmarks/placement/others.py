"""W1, W3 and W5 on W2's servers: a zoo of models, interactive services, tenants of one cloud.

    python benchmarks/placement/others.py --data FOLDER [--seeds 10]

W1 zoo: 90 models of published sizes, one called in 30 % of all cases, bursts of CV 3, the busiest
ten minutes 20 times the mean, executions of 23 s (median) to 100 s; a day of it.
W3 interactive: two services of OPT-6.7B, called as Azure's conversation and code traces say, up to
8 requests in one instance; one trace is silent for minutes.
W5 tenants: the 32 busiest clients of one ServeGen model, each with a model of its own, by their
rates and variations of each ten minutes, scaled to half of what the devices can do; two hours.

Requests that a trace does not fix, sizes and clients are drawn by seed. Without --data, W1 only.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "keepalive"))

import traces  # noqa: E402 - the zoo's traffic is that of the keep-alive benchmark
import zoo  # noqa: E402
from w2 import DEVICES, POLICIES, conditions_of, ratios  # noqa: E402
from worlds import MODELS, w2_cluster  # noqa: E402

from stoker.placement.simulate_files import Cluster, read_rows  # noqa: E402
from stoker.placement.simulate_parts import Function, Request  # noqa: E402
from stoker.placement.simulate_run import simulate  # noqa: E402
from stoker.placement.simulate_workload import gamma_arrivals, made_request  # noqa: E402

OPT = MODELS[0]
WINDOW_SECONDS = 600.0
ZOO_MODELS = 90
ZOO_PER_MINUTE = 2.0
INTERACTIVE_CONCURRENCY = 8
TENANTS = 32
TENANTS_MODEL = "m-large"
TENANTS_SECONDS = 7200.0
TENANTS_LOAD = 0.5

Made = tuple[Cluster, Callable[[Sequence[Function], int], Sequence[Request]]]


def w1(seed: int, days: float) -> Made:
    """The zoo: sizes by seed; a function's executions are those of the trace."""
    cluster = w2_cluster(OPT, ZOO_MODELS)
    draw = random.Random(f"sizes {seed}")
    sizes = [max(draw.choice(zoo.WEIGHT_BYTES), 10**9) for _ in range(ZOO_MODELS)]
    functions = tuple(
        replace(record, checkpoint=replace(record.checkpoint, weight_bytes=size))
        for record, size in zip(cluster.functions, sizes, strict=True)
        if record.checkpoint is not None
    )
    copies = tuple(
        replace(copy, byte_count=size) for copy, size in zip(cluster.copies, sizes, strict=True)
    )

    def workload(made: Sequence[Function], number: int) -> list[Request]:
        by_name = {function.record.name: function for function in made}
        names = list(by_name)
        loads = traces.synthetic(len(names), days, number)
        found = []
        for place, row in enumerate(traces.requests(names, loads, ZOO_PER_MINUTE, number)):
            function = by_name[row.function]
            found.append(Request(place, function, row.at, 0, 0, row.seconds))
        return found

    return replace(cluster, functions=functions, copies=copies), workload


def w3(data: Path) -> Made:
    cluster = w2_cluster(OPT, 2)
    functions = tuple(
        replace(r, scaling=replace(r.scaling, concurrency=INTERACTIVE_CONCURRENCY, maximum=12))
        for r in cluster.functions
    )

    def workload(made: Sequence[Function], _seed: int) -> list[Request]:
        rows = []
        for function, name in zip(made, ("conv", "code"), strict=True):
            for row in read_rows(data / f"azure_llm_2023_{name}.csv.gz"):
                tokens = int(row["prompt_tokens"]), int(row["output_tokens"])
                rows.append((float(row["t_s"]), function, *tokens))
        rows.sort(key=lambda row: row[0])
        return [made_request(n, f, at, *tokens) for n, (at, f, *tokens) in enumerate(rows)]

    return replace(cluster, functions=functions), workload


def w5(data: Path) -> Made:
    windows: dict[str, dict[int, tuple[float, float]]] = defaultdict(dict)
    with gzip.open(data / "servegen_client_rates.csv.gz", "rt", newline="") as lines:
        for row in csv.DictReader(lines):
            at = float(row["t_s"])
            if row["model"] == TENANTS_MODEL and at < TENANTS_SECONDS:
                # A window with a single request has no variation.
                variation = float(row["cv"] or 1.0) or 1.0
                windows[row["client"]][int(at // WINDOW_SECONDS)] = (
                    float(row["rate_rps"]),
                    min(20.0, max(0.3, variation)),
                )
    tokens: dict[str, dict[str, float]] = defaultdict(dict)
    for row in read_rows(data / "servegen_client_lengths.csv.gz"):
        if row["model"] == TENANTS_MODEL:
            tokens[row["client"]][row["field"]] = float(row["mean"])
    known = [c for c in windows if {"input_tokens", "output_tokens"} <= set(tokens[c])]
    volume = {c: sum(rate for rate, _ in windows[c].values()) for c in known}
    clients = sorted(known, key=lambda c: (-volume[c], c))[:TENANTS]
    seconds = {
        c: tokens[c]["input_tokens"] * OPT.prompt_token_seconds
        + tokens[c]["output_tokens"] * OPT.token_seconds
        for c in clients
    }
    busy = sum(volume[c] * WINDOW_SECONDS * seconds[c] for c in clients) / TENANTS_SECONDS
    scale = TENANTS_LOAD * DEVICES / busy

    def workload(made: Sequence[Function], seed: int) -> list[Request]:
        draw = random.Random(f"tenants {seed}")
        rows = []
        for function, client in zip(made, clients, strict=True):
            sizes = tokens[client]["input_tokens"], tokens[client]["output_tokens"]
            for window, (rate, variation) in sorted(windows[client].items()):
                for at in gamma_arrivals(rate * scale, variation, WINDOW_SECONDS, draw):
                    pair = [max(1, int(draw.expovariate(1.0 / size))) for size in sizes]
                    rows.append((window * WINDOW_SECONDS + at, function, *pair))
        rows.sort(key=lambda row: row[0])
        return [made_request(n, f, at, *pair) for n, (at, f, *pair) in enumerate(rows)]

    return w2_cluster(OPT, TENANTS), workload


def measured(made: Callable[[int], Made], seeds: Sequence[int]) -> dict[str, Any]:
    rows: dict[str, list[dict[str, Any]]] = {policy: [] for policy in POLICIES}
    for seed in seeds:
        cluster, workload = made(seed)
        for policy in POLICIES:
            conditions = conditions_of(policy, OPT)
            rows[policy].append(simulate(cluster, workload, policy, seed, conditions).figures())
    return {"policies": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of the traces")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--days", type=float, default=1.0, help="of W1")
    arguments = parser.parse_args()
    seeds = range(1, arguments.seeds + 1)
    worlds: dict[str, Callable[[int], Made]] = {"w1": partial(w1, days=arguments.days)}
    if arguments.data is not None:
        worlds["w3"] = lambda _seed: w3(arguments.data)
        worlds["w5"] = lambda _seed: w5(arguments.data)
    found: dict[str, Any] = {}
    for name, made in worlds.items():
        # W3 is one trace: only the random policy draws.
        cell = measured(made, list(seeds)[:1] if name == "w3" else seeds)
        for policy, rows in cell["policies"].items():
            late = statistics.median(row["start_seconds_p99"] for row in rows)
            mean = statistics.median(row["start_seconds_mean"] for row in rows)
            print(f"{name} {policy:16s} p99 {late:8.2f} s  mean {mean:7.3f} s", flush=True)
        for figure in ("p99", "mean"):
            values = ratios(cell, "serverlessllm", "stoker", f"start_seconds_{figure}")
            found[f"{name}_{figure}_vs_serverlessllm"] = statistics.median(values)
            found[f"{name}_{figure}_vs_serverlessllm_spread"] = [min(values), max(values)]
    print(json.dumps({"benchmark": "placement-others", "figures": found}))


if __name__ == "__main__":
    main()
