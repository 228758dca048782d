"""The queue over the end of its gateway, and a queue that is full."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

from aiohttp import web as server

from harness import web
from harness.gateway import Bench
from harness.stack import free_port, wait_until
from stoker.placement.records import Scaling


def test_a_full_queue_is_429_and_what_was_accepted_outlives_the_gateway(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "state", {"STOKER_JOBS_MAXIMUM": "3"}).start()
    gate = threading.Event()

    async def slow(request: server.Request) -> server.Response:
        await asyncio.to_thread(gate.wait, 20)
        return server.Response(body=await request.read())

    try:
        function = bench.function(scaling=Scaling(concurrency=16))
        worker = bench.worker(slow)
        bench.instance(function, worker.address)
        path = f"/async-function/{function.name}"
        for name in ("a", "b", "c"):
            assert bench.call("POST", path, name, {"X-Call-Id": name}).status == 202
        full = bench.call("POST", path, "d", {"X-Call-Id": "d"})
        assert (full.status, full.headers["x-openfaas-internal"]) == (429, "gateway")
        assert 1 <= int(full.headers["retry-after"]) <= 120
        # One that is there already is no new one.
        assert bench.call("POST", path, "a", {"X-Call-Id": "a"}).status == 202
        wait_until(lambda: worker.in_flight == 3, "they run")

        # It drains for a while, then gives back what still runs: that was no run.
        assert bench.process is not None
        bench.process.terminate()
        assert bench.process.wait(20) == 0
        assert "Traceback" not in bench.log
        gate.set()
        bench.process = bench.spawn()
        wait_until(bench._answers, "the gateway answers again")
        for name in ("a", "b", "c"):
            done = f"/system/async/{name}"
            wait_until(lambda p=done: bench.system("GET", p).json()["state"] == "done", name)
            found = bench.system("GET", done).json()
            assert (found["runs"], found["interruptions"]) == (1, 0)
            assert bench.system("GET", f"/async-function/{name}").body == name.encode()
    finally:
        bench.stop()


def test_another_gateway_of_the_machine_takes_over_at_once_from_one_that_is_killed(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path / "state").start()
    gate = threading.Event()

    async def slow(request: server.Request) -> server.Response:
        await asyncio.to_thread(gate.wait, 20)
        return server.Response(body=await request.read())

    port = free_port()
    other = bench.spawn(STOKER_GATEWAY_BIND=f"127.0.0.1:{port}")
    try:
        function = bench.function(scaling=Scaling(concurrency=64))
        worker = bench.worker(slow)
        bench.instance(function, worker.address)
        url = f"http://127.0.0.1:{port}"
        healthy = f"{url}/system/function/{function.name}"
        secret = web.basic(bench.password)
        wait_until(lambda: _status(healthy, secret) == 200, "the other gateway answers")
        for number in range(20):
            path = f"/async-function/{function.name}"
            assert bench.call("POST", path, b"x", {"X-Call-Id": f"j{number}"}).status == 202
        # The first takes what one process may of one function, the other one the rest.
        wait_until(lambda: worker.in_flight == 20, "all run")

        assert bench.process is not None
        os.killpg(bench.process.pid, signal.SIGKILL)
        bench.process.wait()
        began = time.monotonic()
        wait_until(lambda: len(worker.requests) > 20, "what was interrupted runs again")
        assert time.monotonic() - began < 3.0
        gate.set()
        listed = f"{url}/system/async"

        def all_done() -> bool:
            return {job["state"] for job in web.call("GET", listed, None, secret).json()} == {
                "done"
            }

        wait_until(all_done, "all are done")
        found = web.call("GET", listed, None, secret).json()
        runs = sorted((job["runs"], job["interruptions"]) for job in found)
        assert len(runs) == 20
        assert set(runs) == {(1, 0), (2, 1)}
        assert len(worker.requests) == sum(run for run, _ in runs)
    finally:
        gate.set()
        other.terminate()
        other.wait(15)
        bench.stop()


def _status(url: str, headers: dict[str, str]) -> int:
    try:
        return web.call("GET", url, None, headers).status
    except OSError:
        return 0
