"""Jobs that were accepted while their gateway is killed, again and again.

What must hold, whatever the moment of a kill:
- each id that was answered 202 ends with one outcome: none is lost;
- once that is recorded, the function never sees the id again, nor does the callback's receiver
  once it is recorded that it was told;
- a run is repeated only if it was under way at a kill; `interruptions` counts these, so the runs
  of an id are at most one more than its interruptions.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from aiohttp import web as server

from harness.gateway import Bench
from harness.stack import wait_until
from stoker.placement.records import FunctionRecord, Scaling

ANNOTATIONS = {"com.openfaas.retry.min_wait": "50ms", "com.openfaas.retry.max_wait": "200ms"}


class Seen:
    """What reached the function and the receiver of callbacks, by id and in order."""

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()
        self.told: Counter[str] = Counter()
        self.recorded: set[str] = set()
        self.run_after_record: list[str] = []
        self._lock = threading.Lock()

    async def function(self, request: server.Request) -> server.Response:
        call_id = request.headers["X-Call-Id"]
        with self._lock:
            self.runs[call_id] += 1
            if call_id in self.recorded:
                self.run_after_record.append(call_id)
        await asyncio.sleep(random.uniform(0.0, 0.02))
        return server.Response(body=await request.read())

    async def receiver(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        fields = {n: v.strip() for n, _, v in (line.partition(":") for line in head[1:])}
        body = await reader.readexactly(int(fields["content-length"]))
        assert body.decode() == fields["x-call-id"]
        with self._lock:
            self.told[fields["x-call-id"]] += 1
        writer.write(b"HTTP/1.1 204 X\r\n\r\n")
        writer.close()

    def note_recorded(self, bench: Bench) -> int:
        """Remember whose outcome is on the disk by now."""
        listed = bench.system("GET", "/system/async?state=done&limit=1000").json()
        with self._lock:
            self.recorded |= {job["call_id"] for job in listed}
            return len(self.recorded)


def kill(bench: Bench) -> None:
    """The gunicorn master and its worker at once, as a power cut takes them."""
    assert bench.process is not None
    os.killpg(bench.process.pid, signal.SIGKILL)
    bench.process.wait()


def start(bench: Bench) -> None:
    bench.process = bench.spawn()
    wait_until(bench._answers, "the gateway answers again")


def submit(bench: Bench, function: FunctionRecord, call_id: str, callback: str) -> None:
    """As a client that was told to be patient: again, under the same id, until it is 202."""
    headers = {"X-Call-Id": call_id, "X-Callback-Url": callback}
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            answer = bench.call("POST", f"/async-function/{function.name}", call_id, headers)
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
            continue
        if answer.status == 202:
            return
        # Right after the start the view of functions may still be on its way.
        assert answer.status in (404, 429, 503), answer
        time.sleep(0.05)
    pytest.fail(f"{call_id} was never accepted")


def test_no_accepted_job_is_lost_or_runs_again_after_its_outcome_when_the_gateway_is_killed(
    tmp_path: Path, rounds: Callable[[int, int], int]
) -> None:
    count, kills = rounds(150, 1000), rounds(2, 10)
    bench, seen = Bench(tmp_path / "state", {"STOKER_PRIVATE_DESTINATIONS": "127.0.0.1"}), Seen()
    bench.start()
    try:
        function = bench.function(annotations=ANNOTATIONS, scaling=Scaling(concurrency=16))
        bench.instance(function, bench.worker(seen.function).address)
        callback = f"http://{bench.raw_worker(seen.receiver)}/"
        names = [f"job-{number}" for number in range(count)]
        with ThreadPoolExecutor(16) as pool:
            sent = [pool.submit(submit, bench, function, name, callback) for name in names]
            for killed in range(kills):
                enough = count * (killed + 1) / (kills + 2)
                wait_until(lambda least=enough: seen.runs.total() > least, "some have run")
                seen.note_recorded(bench)
                kill(bench)
                start(bench)
            for accepted in sent:
                accepted.result()
        wait_until(lambda: seen.note_recorded(bench) == count, "every job has an outcome", 60)
        wait_until(lambda: len(seen.told) == count, "every callback came", 60)
        listed = bench.system("GET", f"/system/async?limit={count}").json()
        interruptions = {job["call_id"]: job["interruptions"] for job in listed}
    finally:
        bench.stop()

    twice = [name for name in names if seen.runs[name] > 1]
    assert sorted(interruptions) == sorted(names)
    assert {job["state"] for job in listed} == {"done"}
    assert seen.run_after_record == []
    assert all(seen.runs[name] <= 1 + interruptions[name] for name in names)
    told_twice = sum(seen.told[name] > 1 for name in names)
    # Only what was under way at a kill: 16 runs and 4 callbacks at most each time.
    assert len(twice) <= 16 * kills
    assert told_twice <= 4 * kills
    print({"jobs": count, "kills": kills, "ran_twice": len(twice), "told_twice": told_twice})
