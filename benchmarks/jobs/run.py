"""Measures how many asynchronous calls a real gateway accepts and runs in a second.

    PYTHONPATH=tests python benchmarks/jobs/run.py [--jobs 2000] [--clients 32]

One gateway process, one function that answers at once, `clients` connections that are kept alive.
A 202 is counted, so each one is on the disk. Beside it stands what the disk allows in the same
run: appends of 4 KiB that are synced one by one. The last line is JSON.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import tempfile
import threading
import time
from pathlib import Path

from aiohttp import web as server

from harness.gateway import Bench
from harness.stack import wait_until
from stoker.placement.records import Scaling

SYNCS = 200


async def answer(_: server.Request) -> server.Response:
    return server.Response(body=b"ok")


def syncs_per_second(folder: Path) -> float:
    with (folder / "syncs").open("wb", buffering=0) as file:
        began_at = time.monotonic()
        for _ in range(SYNCS):
            file.write(b"x" * 4096)
            os.fdatasync(file.fileno())
        return SYNCS / (time.monotonic() - began_at)


def send(bench: Bench, path: str, count: int, accepted: list[int], seconds: list[float]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", bench.port, timeout=60)
    for _ in range(count):
        began_at = time.monotonic()
        connection.request("POST", path, b"x" * 200)
        response = connection.getresponse()
        response.read()
        accepted.append(response.status)
        seconds.append(time.monotonic() - began_at)
    connection.close()


def measure(jobs: int, clients: int, folder: Path) -> dict[str, float]:
    bench = Bench(folder / "state").start()
    try:
        function = bench.function(scaling=Scaling(concurrency=64))
        bench.instance(function, bench.worker(answer).address)
        path = f"/async-function/{function.name}"
        accepted: list[int] = []
        seconds: list[float] = []
        threads = [
            threading.Thread(target=send, args=(bench, path, jobs // clients, accepted, seconds))
            for _ in range(clients)
        ]
        began_at = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        accept_seconds = time.monotonic() - began_at
        count = len(accepted)
        assert accepted == [202] * count, set(accepted)
        done = f'gateway_jobs{{queue="invoke",state="done"}} {count}.0'
        wait_until(lambda: done in bench.system("GET", "/metrics").body.decode(), "all ran", 120)
        run_seconds = time.monotonic() - began_at
    finally:
        bench.stop()
    seconds.sort()
    return {
        "accepted_per_second": round(count / accept_seconds, 1),
        "accept_p50_ms": round(1000 * seconds[count // 2], 2),
        "accept_p99_ms": round(1000 * seconds[count * 99 // 100], 2),
        "completed_per_second": round(count / run_seconds, 1),
        "syncs_per_second": round(syncs_per_second(folder), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=32)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        figures = measure(asked.jobs, asked.clients, Path(folder).absolute())
    for name, value in figures.items():
        print(f"{name:24} {value:10.1f}")
    print(json.dumps({"benchmark": "jobs", "figures": figures}))


if __name__ == "__main__":
    main()
