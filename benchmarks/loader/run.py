"""Measures loaders of checkpoints beside each other, and beside the disk.

    python benchmarks/loader/run.py [--gib 2] [--rounds 5] [--seed 7]

Every sample is a fresh process that has imported its loader and waits, on memory that was in
use a moment ago, and ends when one byte of every page of every tensor has been read. The cases
of a round are shuffled, and ratios are taken within rounds. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import boto3
import checkpoint
from cases import CONDITIONS, Case, cases, shuffled
from report import Rounds, figures, keep, machine, show
from rich.console import Console
from runner import Failed, Runner
from throttle import ThrottledProxy

from stoker.deploy.s3server import S3Server

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
GIB = 1 << 30


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=2.0, help="size of the checkpoint")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--idle-seconds", type=float, default=25.0)
    parser.add_argument("--prime-gib", type=float, help="default: twice --gib, and one more")
    parser.add_argument(
        "--throttle-mib", type=float, default=100e6 / MIB, help="MiB/s of the slow wire"
    )
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument("--no-peers", action="store_true", help="only Stoker and the disk")
    parser.add_argument("--folder", type=Path, default=ROOT / "build", help="on the disk to read")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "build" / "benchmarks" / "loader.json"
    )
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.gib <= 0 or arguments.throttle_mib <= 0:
        parser.error("--rounds, --gib and --throttle-mib must be positive")
    if arguments.prime_gib is None:
        arguments.prime_gib = 2 * arguments.gib + 1
    return arguments


def publish(s3: S3Server, folder: Path) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=s3.endpoint_url,
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="models")
    client.put_object(Bucket="models", Key="m/config.json", Body=b"{}")
    for path in (folder / "model.safetensors", folder / "model.tensors"):
        if path.exists():
            client.upload_file(str(path), "models", f"m/{path.name}")


def serve(runner: Runner, rate: float, stack: contextlib.ExitStack) -> None:
    """Start the S3 server and the slow wire to it; the runner learns how to reach both."""
    directory = runner.folder / "s3"
    directory.mkdir()
    s3 = S3Server(directory)
    stack.callback(s3.stop)
    s3.start()
    publish(s3, runner.folder)
    proxy = stack.enter_context(ThrottledProxy(int(s3.endpoint_url.rpartition(":")[2]), rate))
    common = {
        **s3.environment,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
    }
    runner.environments = {
        "s3": common,
        "s3_throttled": {**common, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"},
    }


def measure(
    runner: Runner, found: list[Case], seed: int, count: int, errors: dict[str, str]
) -> Rounds:
    """All rounds; what failed once is not tried again, and `errors` says why."""
    rounds: Rounds = []
    for number in range(1, count + 1):
        taken: dict[str, dict[str, Any]] = {}
        for case in shuffled(found, seed, number):
            name = f"{case.condition} {case.key}"
            if name in errors:
                continue
            try:
                sample = runner.measure(case)
            except Failed as error:
                errors[name] = str(error)
                continue
            taken.setdefault(case.condition, {})[case.key] = sample
            print(f"round {number} of {count}  {name}  {sample['seconds']:.3f} s", flush=True)
        rounds.append(taken)
    return rounds


def main() -> int:
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    errors: dict[str, str] = {}
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        folder = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="loader-", dir=arguments.folder.absolute())
            )
        )
        expected = checkpoint.write(
            folder, int(arguments.gib * GIB), arguments.seed, errors, peers=not arguments.no_peers
        )
        file_bytes = (folder / "model.safetensors").stat().st_size
        runner = Runner(folder, expected, int(arguments.prime_gib * GIB), arguments.idle_seconds)
        if any(condition.startswith("s3") for condition in arguments.conditions):
            serve(runner, arguments.throttle_mib * MIB, stack)
        described = machine(folder)
        found = cases(arguments.conditions, peers=not arguments.no_peers)
        rounds = measure(runner, found, arguments.seed, arguments.rounds, errors)
    show(rounds, file_bytes, errors, Console())
    result = figures(rounds, file_bytes, arguments.throttle_mib * MIB)
    keep(
        {
            "benchmark": "loader",
            "settings": {
                name: value
                for name, value in vars(arguments).items()
                if name not in ("folder", "output")
            },
            "file_bytes": file_bytes,
            "machine": described,
            "figures": result,
            "errors": errors,
            "rounds": rounds,
        },
        arguments.output,
    )
    print(json.dumps({"benchmark": "loader", "figures": result}), flush=True)
    return 1 if any(" stoker" in name for name in errors) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
