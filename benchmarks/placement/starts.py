"""How well the starts of a real node are predicted, after ten of them.

    python benchmarks/placement/starts.py [--starts 40]

One node, one model in a real S3 server. Each start is from memory, from the disk or from S3, in
turns; `stoker why` says what was predicted and what it took. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Before this folder, which has a `run` of its own.
sys.path.insert(0, str(ROOT / "benchmarks" / "demo"))

from node import SETTLE_SECONDS, WAIT_SECONDS, Node, wait_for  # noqa: E402 (beside this benchmark)
from run import fetch_model, publish  # noqa: E402

from stoker.deploy.s3server import S3Server  # noqa: E402

STARTS = ("dram", "ssd", "remote")
LEARNING_STARTS = 10


class Starts(Node):
    def one(self, start: str) -> dict[str, Any]:
        """One cold start of that kind: what was decided, as `stoker why` tells it."""
        self.stop_instances("chat")
        if start != "dram":
            body = {"disk": start == "remote"}
            self._client().call("POST", "/system/evict-function/chat", body)
        time.sleep(SETTLE_SECONDS)
        self.chat("chat", "Hello", 1, lambda _: None)
        (instance,) = self.instances()
        told: dict[str, Any] = {}

        def compared() -> bool:
            path = f"/system/why/{instance['instance_id']}"
            told.update(self._client().call("GET", path))
            return told["actual_seconds"] is not None

        wait_for(compared, WAIT_SECONDS, "the start to be compared with its prediction")
        return told


def measure(node: Starts, count: int) -> dict[str, list[tuple[float, float]]]:
    """Predicted and actual seconds of the starts after the first ten, by their kind."""
    compared: dict[str, list[tuple[float, float]]] = {start: [] for start in STARTS}
    for number in range(count):
        start = STARTS[number % len(STARTS)]
        told = node.one(start)
        predicted, actual = told["predicted_seconds"], told["actual_seconds"]
        error = abs(predicted - actual) / actual
        print(f"{number:3} {start:6} predicted {predicted:.3f} s, took {actual:.3f} s: {error:.1%}")
        if number >= LEARNING_STARTS:
            compared[told["kind"]].append((predicted, actual))
    return compared


def errors_of(compared: list[tuple[float, float]]) -> list[float]:
    """As shares of what the starts took."""
    return [abs(predicted - actual) / actual for predicted, actual in compared]


def spread(compared: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same with their median for a prediction, which nobody knows before: chance alone."""
    middle = statistics.median(actual for _, actual in compared)
    return [(middle, actual) for _, actual in compared]


def quantiles(errors: list[float]) -> dict[str, float]:
    ordered = sorted(errors)
    return {
        "median": round(statistics.median(ordered), 3),
        "p95": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=40)
    arguments = parser.parse_args()
    if arguments.starts < LEARNING_STARTS + len(STARTS):
        parser.error(f"--starts must be at least {LEARNING_STARTS + len(STARTS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = fetch_model()
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stoker-starts-")))
        (scratch / "s3").mkdir()
        s3 = S3Server(scratch / "s3")
        stack.callback(s3.stop)
        s3.start()
        publish(folder, scratch, s3)
        node = Starts(scratch / "state", s3.environment)
        stack.callback(node.stop)
        node.start()
        node.command("deploy", "-f", str(ROOT / "functions" / "chat" / "stack.yaml"))
        node.chat("chat", "Hello", 1, lambda _: None)
        compared = {k: found for k, found in measure(node, arguments.starts).items() if found}
    errors = {start: errors_of(found) for start, found in compared.items()}
    left = [error for found in compared.values() for error in errors_of(spread(found))]
    figures = {
        "all": quantiles([error for found in errors.values() for error in found]),
        "of_chance": quantiles(left),
        **{start: quantiles(found) for start, found in errors.items()},
    }
    print(json.dumps({"benchmark": "placement_starts", "figures": figures}))


if __name__ == "__main__":
    main()
