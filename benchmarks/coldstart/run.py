"""Measures from the request to the first token, from every state a model can start from.

    python benchmarks/coldstart/run.py [--rounds 5] [--seed 7] [--only GROUP ...]

A round measures Stoker's starts, plain transformers in a fresh process, other servers' own cold
starts, and streams at once with and without the runtime around them, in a random order; what is
compared is compared within rounds. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from http.client import HTTPException
from pathlib import Path
from typing import Any

import boto3
import cold_node  # noqa: F401 (it shows the way to the other benchmarks' modules)
from figures import Rounds, figures
from groups import OVERLAP_LOAD_SECONDS, Groups
from http_client import Failed
from node import STOKER
from report import keep, machine
from rich.console import Console
from starts import FUNCTIONS, GROUPS, PEERS, shuffled
from tables import show_errors, show_starts, show_streams, show_waterfall
from throttle import ThrottledProxy

from stoker.deploy.s3server import S3Server
from stoker.placement.errors import StokerError

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "uvicorn", "tokenizers")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--throttle-mb", type=float, default=100.0, help="MB/s of the slow wire")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--no-peers", action="store_true", help="only Stoker and transformers")
    parser.add_argument("--folder", type=Path, default=ROOT / "build", help="on the disk to read")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "build" / "benchmarks" / "coldstart.json"
    )
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.throttle_mb <= 0:
        parser.error("--rounds and --throttle-mb must be positive")
    if arguments.no_peers:
        arguments.only = [group for group in arguments.only if group not in PEERS]
    return arguments


def publish(scratch: Path, s3: S3Server) -> tuple[dict[str, Path], dict[str, int]]:
    """Pack and push the models; their folders and the bytes of their weights by function."""
    boto3.client(
        "s3",
        endpoint_url=s3.endpoint_url,
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
        region_name="us-east-1",
    ).create_bucket(Bucket="models")
    variables = {**os.environ, **s3.environment}
    folders, weight_bytes = {}, {}
    for function, model in FUNCTIONS.items():
        script = str(ROOT / "functions" / "fetch_models.py")
        found = subprocess.run(
            [sys.executable, script, model], check=True, stdout=subprocess.PIPE, text=True
        )
        folders[function] = Path(found.stdout.strip().splitlines()[-1])
        packed = scratch / "packed" / model
        pack = ("model", "pack", str(folders[function]), "--out", str(packed))
        subprocess.run([*STOKER, *pack], check=True)
        push = ("model", "push", str(packed), f"s3://models/{model}")
        subprocess.run([*STOKER, *push], env=variables, check=True)
        weight_bytes[function] = sum(p.stat().st_size for p in packed.glob("*.safetensors"))
    return folders, weight_bytes


def sources(
    s3: S3Server, rates: dict[str, float], stack: contextlib.ExitStack
) -> dict[str, dict[str, str]]:
    """What a node exports to reach the source directly, and at each of the rates (bytes/s)."""
    found = {"direct": dict(s3.environment)}
    port = int(s3.endpoint_url.rpartition(":")[2])
    for name, rate in rates.items():
        proxy = stack.enter_context(ThrottledProxy(port, rate))
        endpoint = f"http://127.0.0.1:{proxy.port}"
        found[name] = {**s3.environment, "AWS_ENDPOINT_URL": endpoint}
    return found


def measure_round(groups: Groups, order: list[str], errors: dict[str, str]) -> dict[str, Any]:
    """One round; what failed once is not tried again, and `errors` says why."""
    taken: dict[str, Any] = {}
    if "fio" not in errors:
        try:
            taken["device_bytes_per_second"] = groups.device_bytes_per_second()
        except Failed as error:
            errors["fio"] = str(error)
    for group in order:
        if group in errors:
            continue
        begun = time.monotonic()
        try:
            taken |= groups.measure(group)
        except (Failed, StokerError, OSError, HTTPException) as error:
            errors[group] = f"{type(error).__name__}: {error}"
        print(f"  {group}  {time.monotonic() - begun:.0f} s", flush=True)
    return taken


def main() -> int:
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Wide enough for the tables also where the output goes into a file.
    console = Console(width=max(120, Console().width))
    errors, rounds = dict[str, str](), Rounds()
    wire = arguments.throttle_mb * 1e6
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        scratch = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="cold-", dir=arguments.folder.absolute())
            )
        )
        (scratch / "s3").mkdir()
        s3 = S3Server(scratch / "s3")
        stack.callback(s3.stop)
        s3.start()
        folders, weight_bytes = publish(scratch, s3)
        rates = {"throttled": wire, "overlap": weight_bytes["chat"] / OVERLAP_LOAD_SECONDS}
        found = sources(s3, rates, stack)
        groups = Groups(scratch / "state", found, folders, random.Random(arguments.seed))
        described = describe(arguments, scratch, weight_bytes)
        with groups.node("direct") as node:
            node.start()
            node.deploy()
        for number in range(1, arguments.rounds + 1):
            print(f"round {number} of {arguments.rounds}", flush=True)
            order = shuffled(arguments.only, arguments.seed, number)
            rounds.append(measure_round(groups, order, errors))
            result = figures(rounds, weight_bytes, wire)
            keep(
                {**described, "figures": result, "errors": errors, "rounds": rounds},
                arguments.output,
            )
    show_starts(rounds, console)
    show_streams(rounds, console)
    show_waterfall(rounds, "chat dram", console)
    show_errors(errors, console)
    print(json.dumps({"benchmark": "coldstart", "figures": result}), flush=True)
    return 1 if any(group in errors for group in GROUPS if group not in PEERS) else 0


def describe(
    arguments: argparse.Namespace, scratch: Path, weight_bytes: dict[str, int]
) -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "benchmark": "coldstart",
        # Paths tell of this machine and of nothing that was measured.
        "settings": {k: str(v) for k, v in vars(arguments).items() if not isinstance(v, Path)},
        "weight_bytes": weight_bytes,
        "machine": {**machine(scratch), "versions": versions},
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
