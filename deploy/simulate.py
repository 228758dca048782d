"""`stoker simulate` and `stoker plan`: what a cluster would make of a trace, in virtual time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from stoker.deploy.simulate_plots import draw
from stoker.gateway.cli.options import json_option, print_json, print_table, reports_errors
from stoker.placement.advice import advise
from stoker.placement.errors import BadSpec
from stoker.placement.placing import PLACINGS
from stoker.placement.records import Scaling
from stoker.placement.simulate_files import (
    Cluster,
    cluster_of,
    described_function,
    read_cluster,
    read_lengths,
    read_names,
    read_trace,
)
from stoker.placement.simulate_parts import Function, Request
from stoker.placement.simulate_run import Conditions, Workload, simulate, summary
from stoker.placement.simulate_workload import drawn_requests

_COLUMNS = (
    ("P50 S", "start_seconds_p50"),
    ("P95 S", "start_seconds_p95"),
    ("P99 S", "start_seconds_p99"),
    ("MEAN S", "start_seconds_mean"),
    ("WARM", "warm_share"),
    ("BUSY", "from_busy"),
    ("DRAM", "from_dram"),
    ("SSD", "from_ssd"),
    ("PEER", "from_peer"),
    ("REMOTE", "from_remote"),
    ("MIGRATED", "migrations"),
    ("PREEMPTED", "preemptions"),
    ("TIMEOUTS", "timeouts"),
)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("simulate")
@click.option("--cluster", "cluster_file", type=_FILE, required=True, help="Nodes and functions.")
@click.option("--trace", type=_FILE, help="Requests as CSV: t_s, function, seconds or tokens.")
@click.option("--rps", type=click.FloatRange(min=0.0, min_open=True), help="Draw the requests.")
@click.option("--cv", type=click.FloatRange(0.1, 100.0), default=1.0, show_default=True)
@click.option("--minutes", type=click.FloatRange(min=0.0, min_open=True), default=30.0)
@click.option("--lengths", type=_FILE, help="Prompt and output tokens as CSV, with --rps.")
@click.option("--zipf", type=click.FloatRange(0.0, 5.0), default=0.0, help="Skew of popularity.")
@click.option(
    "--policy", "policies", type=click.Choice(sorted(PLACINGS)), multiple=True, default=("stoker",)
)
@click.option("--seed", "seeds", type=int, multiple=True, default=(1,), help="May be repeated.")
@click.option("--idle-seconds", type=click.FloatRange(min=0.0), help="Default: learned.")
@click.option("--timeout-seconds", type=click.FloatRange(min=0.0), default=math.inf)
@click.option("--failure-hours", type=click.FloatRange(min=0.001), help="Mean life of a node.")
@click.option("--down-seconds", type=click.FloatRange(min=0.0), default=300.0, show_default=True)
@click.option("--deployed-seconds", type=click.FloatRange(min=0.0), default=0.0, show_default=True)
@click.option("--plots", type=click.Path(file_okay=False, path_type=Path), help="Folder for PNGs.")
@json_option
@reports_errors
def simulate_command(
    cluster_file: Path, policies: Sequence[str], as_json: bool, **options: Any
) -> None:
    """Replay a trace on a described cluster, with the code that decides in production."""
    cluster = read_cluster(cluster_file)
    workload, hours = _workload(cluster, options), options["failure_hours"]
    conditions = Conditions(
        idle_seconds=options["idle_seconds"],
        timeout_seconds=options["timeout_seconds"],
        failure_seconds=math.inf if hours is None else hours * 3600.0,
        down_seconds=options["down_seconds"],
        deployed_seconds=options["deployed_seconds"],
    )
    outcomes = {
        policy: [simulate(cluster, workload, policy, seed, conditions) for seed in options["seeds"]]
        for policy in policies
    }
    if options["plots"] is not None:
        draw(outcomes, options["plots"])
    found = {policy: summary(runs) for policy, runs in outcomes.items()}
    if as_json:
        print_json(found)
        return
    print_table(
        ("POLICY", *(title for title, _ in _COLUMNS)),
        [
            (policy, *(_cell(figures[name]) for _, name in _COLUMNS))
            for policy, figures in found.items()
        ],
    )


@click.command("plan")
@click.option("--trace", type=_FILE, required=True, help="Your requests as CSV: t_s, function, …")
@click.option("--cluster", "cluster_file", type=_FILE, help="Default: one node.")
@click.option("--weight-bytes", type=float, default=0.0, help="Of each function's model.")
@json_option
@reports_errors
def plan_command(
    trace: Path, cluster_file: Path | None, weight_bytes: float, as_json: bool
) -> None:
    """Say what idle times, slots and pins would do for your own traffic."""
    cluster = _own_cluster(trace, cluster_file, weight_bytes)
    found = advise(cluster, lambda functions, seed: read_trace(trace, functions, seed=seed))
    if as_json:
        print_json(found.to_json())
        return
    for title, rows in found.tables():
        click.echo(title)
        columns = tuple(name.replace("_", " ").upper() for name in rows[0])
        print_table(columns, [tuple(map(_cell, row.values())) for row in rows])
        click.echo()
    for sentence in found.sentences:
        click.echo(sentence)


def _workload(cluster: Cluster, options: dict[str, Any]) -> Workload:
    trace, rate, zipf = options["trace"], options["rps"], options["zipf"]
    if (trace is None) == (rate is None):
        raise BadSpec("Expected one of --trace and --rps.", "Say who calls: a file or a rate.")
    if not cluster.functions:
        raise BadSpec("Expected functions in the cluster file, found none.")
    lengths = read_lengths(options["lengths"]) if options["lengths"] else [(0, 0)]

    def made(functions: Sequence[Function], seed: int) -> Sequence[Request]:
        if trace is not None:
            return read_trace(trace, functions, seed=seed, zipf=zipf)
        return drawn_requests(
            functions,
            lengths,
            rate=rate,
            variation=options["cv"],
            seconds=options["minutes"] * 60.0,
            seed=seed,
            zipf=zipf,
        )

    return made


def _own_cluster(trace: Path, cluster_file: Path | None, weight_bytes: float) -> Cluster:
    """The described cluster, with every function that only the trace names."""
    names = read_names(trace)
    if cluster_file is not None:
        cluster = read_cluster(cluster_file)
    else:
        cluster = cluster_of({"nodes": [{"name": "node", "instances": 8}]}, "the default cluster")
    known = {record.name for record in cluster.functions}
    scaling = Scaling(maximum=1)
    added = [
        described_function(name, int(weight_bytes), 0, scaling)
        for name in names
        if name not in known
    ]
    return cluster.with_functions(added)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if value == int(value) and abs(value) >= 10 else f"{value:.3g}"
    return str(value)
