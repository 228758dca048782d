"""The queue over the end of its gateway, and a queue that is full."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from aiohttp import web as server

from harness.gateway import Bench
from harness.stack import wait_until
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
