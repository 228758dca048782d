"""Measures what the gateway adds to a null function, and what one core of it and of peers can do.

    python benchmarks/gateway/run.py [--rounds 3] [--seed 7] [--only SUBJECT ...]

A round measures every subject in a random order; what is compared is compared within rounds. The
process that clients talk to has a core to itself, and the null server and the load share the
others. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "benchmarks" / name) for name in ("coldstart", "loader")]

from http_client import Failed  # noqa: E402 (beside this benchmark)
from report import keep, machine  # noqa: E402
from rich.console import Console  # noqa: E402
from subjects import (  # noqa: E402
    FRONT_CORE,
    OTHER_CORES,
    PEERS,
    SUBJECTS,
    Running,
    null_server,
    pin,
    running,
)
from summary import Rounds, figures, show  # noqa: E402

HERE = Path(__file__).resolve().parent
LOAD_SECONDS_MAXIMUM = 120.0
SETTLE_SECONDS = 1.0
RATE = 500.0
STREAMS = 2000


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--only", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument(
        "--output", type=Path, default=ROOT / "build" / "benchmarks" / "gateway.json"
    )
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.seconds <= 0:
        parser.error("--rounds and --seconds must be positive")
    return arguments


class Meter:
    """Puts loads on what runs. `seconds` is how long each lasts."""

    def __init__(self, seconds: float, seed: int) -> None:
        self._seconds = seconds
        self._seed = seed

    def opened(self, on: Running, path: str) -> dict[str, Any]:
        return self._run(on, path, kind="open", rate=RATE)

    def first(self, on: Running, path: str) -> dict[str, Any]:
        return self._run(on, path, kind="first")

    def closed(self, on: Running) -> dict[str, Any]:
        """The most that goes, and how much of its core the front used for it."""
        with self._load(on, on.path, kind="closed") as load:
            _expect(load, "begun")
            cpu, began = on.cpu_seconds(), time.monotonic()
            _expect(load, "ended")
            share = (on.cpu_seconds() - cpu) / (time.monotonic() - began)
            found = _result(load)
        # On a busy machine the front gets less than its core; what it does with it is the same.
        return {**found, "core": share, "per_core": found["requests_per_second"] / share}

    def hold(self, on: Running, path: str) -> dict[str, Any]:
        """Megabytes of the front before and with the streams."""
        before = on.memory_bytes()
        with self._load(on, path, kind="hold", count=STREAMS) as load:
            _expect(load, "held")
            held = on.memory_bytes()
            found = _result(load)
        if found["still_open"] != STREAMS:
            raise Failed(f"Of {STREAMS} streams {found['still_open']} stayed open.")
        return {**found, "before_mb": before / 1e6, "held_mb": held / 1e6}

    def _run(self, on: Running, path: str, **fields: Any) -> dict[str, Any]:
        with self._load(on, path, **fields) as load:
            return _result(load)

    def _load(self, on: Running, path: str, **fields: Any) -> subprocess.Popen[str]:
        told = {
            "port": on.port,
            "path": path,
            "body": on.body,
            "headers": dict(on.headers),
            "seconds": self._seconds,
            "seed": self._seed,
            **fields,
        }
        return subprocess.Popen(
            [sys.executable, str(HERE / "load.py"), json.dumps(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


def _expect(load: subprocess.Popen[str], line: str) -> None:
    assert load.stdout is not None
    found = load.stdout.readline().strip()
    if found != line:
        raise Failed(f"The load said {found!r} where {line!r} was expected.")


def _result(load: subprocess.Popen[str]) -> dict[str, Any]:
    assert load.stdin is not None
    assert load.stdout is not None
    overdue = threading.Timer(LOAD_SECONDS_MAXIMUM, load.kill)
    overdue.start()
    try:
        load.stdin.close()
        told = load.stdout.read()
        load.wait()
    finally:
        overdue.cancel()
    if load.returncode != 0:
        raise Failed(f"The load ended with {load.returncode}.")
    found: dict[str, Any] = json.loads(told)
    return found


def measure(name: str, direct: Running, meter: Meter, scratch: Path) -> dict[str, Any]:
    """The samples of one subject. Raises Failed."""
    with running(name, direct.port, scratch) as subject:
        time.sleep(SETTLE_SECONDS)
        taken = {f"closed {name}": meter.closed(subject)}
        if name == "stoker":
            for prefix, on in (("direct", direct), ("stoker", subject)):
                path = on.path.rstrip("/")
                taken[f"open {prefix}"] = meter.opened(on, on.path)
                taken[f"first {prefix}"] = meter.first(on, f"{path}/stream")
            taken["hold stoker"] = meter.hold(subject, f"{subject.path}/hold")
        return taken


def measure_round(
    order: list[str], direct: Running, meter: Meter, scratch: Path, errors: dict[str, str]
) -> dict[str, Any]:
    """One round; what failed once is not tried again, and `errors` says why."""
    taken: dict[str, Any] = {}
    for name in order:
        if name in errors:
            continue
        begun = time.monotonic()
        try:
            taken |= measure(name, direct, meter, scratch / name)
        except (Failed, OSError) as error:
            errors[name] = f"{type(error).__name__}: {error}"
        print(f"  {name}  {time.monotonic() - begun:.0f} s", flush=True)
    return taken


def describe(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    return {
        "benchmark": "gateway",
        "settings": {k: str(v) for k, v in vars(arguments).items() if k != "output"},
        "cores": {"front": sorted(FRONT_CORE), "others": sorted(OTHER_CORES)},
        "machine": machine(scratch),
    }


def main() -> int:
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    pin(os.getpid(), OTHER_CORES)
    console = Console(width=max(120, Console().width))
    errors, rounds = dict[str, str](), Rounds()
    meter, result = Meter(arguments.seconds, arguments.seed), dict[str, float | None]()
    with tempfile.TemporaryDirectory(prefix="gateway-") as folder, null_server() as direct:
        described = describe(arguments, Path(folder))
        for number in range(1, arguments.rounds + 1):
            print(f"round {number} of {arguments.rounds}", flush=True)
            order = random.Random(arguments.seed + number).sample(
                arguments.only, len(arguments.only)
            )
            scratch = Path(folder) / f"round-{number}"
            rounds.append(measure_round(order, direct, meter, scratch, errors))
            result = figures(rounds, PEERS)
            kept: Mapping[str, Any] = {"figures": result, "errors": errors, "rounds": rounds}
            keep({**described, **kept}, arguments.output)
    show(rounds, errors, console)
    print(json.dumps({"benchmark": "gateway", "figures": result}), flush=True)
    return 1 if any(name not in PEERS for name in errors) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
