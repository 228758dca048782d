"""The gateway is replaced under load, again and again, and nobody notices."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import aiohttp
import psutil
from aiohttp import web as server

from harness.gateway import Bench
from harness.stack import wait_until
from stoker.deploy.up import gateway_socket
from stoker.placement.records import Scaling

REQUESTS_PER_SECOND = 200
STREAM_SECONDS = 3.0


async def echo(request: server.Request) -> server.Response:
    return server.Response(body=await request.read())


async def load(url: str, seconds: float) -> Counter[str]:
    """What came of requests that start evenly, whatever became of those before."""
    results: Counter[str] = Counter()

    async def call(session: aiohttp.ClientSession, number: int) -> None:
        body = b"%d" % number
        try:
            async with session.post(url, data=body) as response:
                right = response.status == 200 and await response.read() == body
                results["answered" if right else f"status {response.status}"] += 1
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            results[type(error).__name__] += 1

    # A client that keeps idle connections for longer than the server loses by its own fault.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=3.0)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        begun = time.monotonic()
        for number in range(int(seconds * REQUESTS_PER_SECOND)):
            due = begun + number / REQUESTS_PER_SECOND
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            group.create_task(call(session, number))
    return results


def workers(master: int) -> set[int]:
    return {child.pid for child in psutil.Process(master).children()}


def reload(master: int) -> None:
    before = workers(master)
    os.kill(master, signal.SIGHUP)
    wait_until(lambda: (now := workers(master)) and not now & before, "another worker serves alone")


def test_a_reload_and_a_restart_under_load_lose_no_request(
    tmp_path: Path, rounds: Callable[[int, int], int]
) -> None:
    """SIGHUP replaces the worker; SIGTERM ends the process, and its socket outlives it."""
    seconds = rounds(6, 60)
    bench = Bench(tmp_path / "state")
    with gateway_socket(bench.port) as listening:
        bench.environment = {"STOKER_GATEWAY_DESCRIPTOR": str(listening)}
        bench.descriptors = (listening,)
        bench.start()
        try:
            function = bench.function(scaling=Scaling(concurrency=1000))
            bench.instance(function, bench.worker(echo).address)
            running = asyncio.run_coroutine_threadsafe(
                load(f"{bench.url}/function/{function.name}", seconds), bench.loop.loop
            )
            ends_at, restarts = time.monotonic() + seconds, 0
            while time.monotonic() < ends_at - 3:
                time.sleep(0.5)
                assert bench.process is not None
                if restarts % 2:
                    bench.process.send_signal(signal.SIGTERM)
                    assert bench.process.wait(30) == 0
                    bench.process = bench.spawn()
                    # Its socket listens already; a worker that still boots loses signals.
                    assert bench.call("GET", "/healthz").status == 200
                else:
                    reload(bench.process.pid)
                restarts += 1
            results = running.result(seconds + 60)
            assert restarts >= 2
            assert results == {"answered": seconds * REQUESTS_PER_SECOND}
            print(f"{restarts} restarts, {dict(results)}")
        finally:
            bench.stop()
