"""Deploys a real model from a real S3 server and measures its cold starts.

    python benchmarks/demo/run.py [--rounds 3]

Each round measures the time to the first token of one short prompt from every state a model
can start from, and beside it plain transformers in a fresh process; the rounds take turns. The
last line is JSON. Everything that was started is stopped at the end, whatever the end is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import boto3
from node import STOKER, FirstToken, Node
from report import STARTS, keep, last_line, machine, show
from rich.console import Console

from stoker.deploy.s3server import S3Server

ROOT = Path(__file__).resolve().parents[2]
MODEL = "smollm2-135m-instruct"
PROMPT = "Explain in two short sentences why the sky is blue in the daytime and red in the evening."
TOKENS = 32
Samples = dict[str, list[dict[str, Any]]]


def fetch_model() -> Path:
    """The model's folder, made at the first run."""
    script = str(ROOT / "functions" / "fetch_models.py")
    found = subprocess.run(
        [sys.executable, script, MODEL], check=True, stdout=subprocess.PIPE, text=True
    )
    return Path(found.stdout.strip().splitlines()[-1])


def publish(folder: Path, scratch: Path, s3: S3Server) -> int:
    """Pack the model and push it to a new bucket; returns the bytes of its weights."""
    boto3.client(
        "s3",
        endpoint_url=s3.endpoint_url,
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
        region_name="us-east-1",
    ).create_bucket(Bucket="models")
    packed = scratch / "packed"
    variables = {**os.environ, **s3.environment}
    subprocess.run([*STOKER, "model", "pack", str(folder), "--out", str(packed)], check=True)
    target = f"s3://models/{MODEL}"
    subprocess.run([*STOKER, "model", "push", str(packed), target], env=variables, check=True)
    weight_bytes = sum(path.stat().st_size for path in packed.glob("*.safetensors"))
    shutil.rmtree(packed)
    return weight_bytes


def measure_fresh_process(folder: Path) -> dict[str, Any]:
    """Spawn to first token of transformers, with the files in the page cache."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass
    program = str(Path(__file__).with_name("fresh_process.py"))
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, program, str(folder), PROMPT],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        ttft_ms = (time.perf_counter() - began) * 1000
    if not line:
        sys.exit(f"The fresh process ended with {process.returncode} before its first token.")
    return {"ttft_ms": ttft_ms, "stages_ms": json.loads(line)["stages_ms"]}


def measure_round(node: Node, folder: Path, weight_bytes: int, samples: Samples) -> None:
    """One sample of every start."""

    def sample(start: str) -> None:
        result = node.chat("chat", PROMPT, TOKENS, lambda _: None)
        samples[start].append({"ttft_ms": result.ttft_ms, "stages_ms": dict(result.stages_ms)})

    samples["fresh_process"].append(measure_fresh_process(folder))
    node.empty_everything()
    sample("s3")
    sample("warm")
    node.stop_instances("chat")
    sample("dram")
    node.empty_memory(weight_bytes)
    sample("ssd")


def first_answer(node: Node, console: Console) -> FirstToken:
    """Deploy, and show the first streamed answer."""
    node.command("deploy", "-f", str(ROOT / "functions" / "chat" / "stack.yaml"))
    console.print(f"\n[bold]{PROMPT}[/bold]")
    result = node.chat("chat", PROMPT, 64, lambda text: console.out(text, end=""))
    console.print(f"\n(first token after {result.ttft_ms:.0f} ms, from S3)\n")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "benchmarks" / "demo.json")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console()
    samples: Samples = {start: [] for start in STARTS}
    folder = fetch_model()
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stoker-demo-")))
        (scratch / "s3").mkdir()
        # Registered before it starts: a signal may come while it does.
        s3 = S3Server(scratch / "s3")
        stack.callback(s3.stop)
        s3.start()
        console.print(f"S3 server  {s3.endpoint_url}")
        weight_bytes = publish(folder, scratch, s3)
        node = Node(scratch / "state", s3.environment)
        stack.callback(node.stop)
        node.start()
        console.print(f"gateway    http://127.0.0.1:{node.port}")
        first_answer(node, console)
        for number in range(1, arguments.rounds + 1):
            console.print(f"round {number} of {arguments.rounds}")
            measure_round(node, folder, weight_bytes, samples)
    described = {"model": MODEL, "prompt": PROMPT, "tokens": TOKENS, "machine": machine()}
    keep(samples, described, arguments.output)
    show(samples, console)
    print(last_line(samples), flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
