"""Runs the jobs of one queue in this process, a bounded number at a time.

It sleeps until something is written, one of its own jobs ends, or the next one is due; it never
looks without a reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from stoker.gateway.exchange import BufferBudget
from stoker.gateway.jobs.metrics import JobMetrics
from stoker.gateway.jobs.queue import Claimed
from stoker.gateway.jobs.records import Again, Ended, Leased, Outcome, Verdict
from stoker.gateway.jobs.store import QueueRunner
from stoker.placement.errors import StokerError, Unavailable

# The queue cannot be read or written: nothing tells when its disk is well again.
BROKEN_SECONDS = 2.0
# What runs when the gateway stops has so long to end; the rest runs again elsewhere.
DRAIN_SECONDS = 3.0

_log = structlog.get_logger()


class Work:
    """A job under way, as its handler sees it; `stop` is set when it is to be cancelled."""

    def __init__(self, job: Leased, body: bytes) -> None:
        self.job = job
        self.body = body
        self.stop = asyncio.Event()


Handler = Callable[[Work], Awaitable[Verdict]]


@dataclass(frozen=True, slots=True)
class Limits:
    """Jobs that run at once in this process, and of them those of one key."""

    jobs: int
    jobs_of_key: int


@dataclass(slots=True)
class _Running:
    job: Leased
    task: asyncio.Task[None] | None = None
    work: Work | None = None
    cancelled: bool = False


class Pool:
    def __init__(
        self,
        store: QueueRunner,
        queue: str,
        handler: Handler,
        limits: Limits,
        budget: BufferBudget,
        metrics: JobMetrics,
    ) -> None:
        self._store = store
        self._queue = queue
        self._handler = handler
        self._limits = limits
        self._budget = budget
        self._metrics = metrics
        self._running: dict[str, _Running] = {}
        self._running_of_key: Counter[str] = Counter()
        self._news = asyncio.Event()
        self._news.set()
        self._closing = False
        self._claiming = asyncio.create_task(self._claim_forever())

    def wake(self) -> None:
        self._news.set()

    async def close(self) -> None:
        """Take no more, wait a little for what runs, and give the rest back."""
        self._closing = True
        self._news.set()
        await self._claiming
        tasks = [running.task for running in self._running.values() if running.task]
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=DRAIN_SECONDS)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _claim_forever(self) -> None:
        next_at = math.inf
        while True:
            pause_seconds = None if next_at == math.inf else max(0.0, next_at - time.time())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_seconds):
                    await self._news.wait()
            self._news.clear()
            if self._closing:
                return
            try:
                claimed = await self._claim()
            except StokerError as error:
                _log.warning("jobs_unclaimed", queue=self._queue, cause=error.cause)
                next_at = time.time() + BROKEN_SECONDS
                continue
            next_at = claimed.next_due_at
            for job in claimed.jobs:
                self._begin(job)
            for name in claimed.to_cancel:
                self._cancel(name)

    async def _claim(self) -> Claimed:
        limits, lease = self._limits, self._store.lease
        room = limits.jobs - len(self._running)
        of_key = dict(self._running_of_key)
        return await self._store.run(
            lambda queue: queue.claim(
                self._queue,
                lease,
                room,
                lambda key: limits.jobs_of_key - of_key.get(key, 0),
                time.time(),
            )
        )

    def _begin(self, job: Leased) -> None:
        running = _Running(job)
        self._running[job.id] = running
        self._running_of_key[job.key] += 1
        running.task = asyncio.create_task(self._run(running))

    def _cancel(self, name: str) -> None:
        running = self._running.get(name)
        if running is not None:
            running.cancelled = True
            if running.work is not None:
                running.work.stop.set()

    async def _run(self, running: _Running) -> None:
        job = running.job
        try:
            verdict = await self._verdict(running)
            await self._record(job, verdict)
        finally:
            del self._running[job.id]
            self._running_of_key[job.key] -= 1
            if not self._running_of_key[job.key]:
                del self._running_of_key[job.key]
            self._news.set()

    async def _verdict(self, running: _Running) -> Verdict:
        job = running.job
        try:
            self._budget.take(job.body_bytes)
        except Unavailable as error:
            return Again(BROKEN_SECONDS, False, _failed(error))
        try:
            body = await self._store.run(lambda queue: queue.body(job.queue, job.id, "request"))
            running.work = Work(job, body)
            if running.cancelled:
                running.work.stop.set()
            return await self._handler(running.work)
        except StokerError as error:
            return Again(BROKEN_SECONDS, False, _failed(error))
        except asyncio.CancelledError:
            # Only `close` does this; the job is given back before the task ends.
            stopping = Unavailable("The gateway stopped while it ran the job.")
            return Again(0.0, False, _failed(stopping))
        except Exception:  # noqa: BLE001 - told in the log and in the job
            _log.exception("job_handler_broken", queue=job.queue, job=job.id)
            broken = StokerError("The gateway failed in a way that it does not know.")
            return Ended("dead", _failed(broken))
        finally:
            self._budget.give_back(job.body_bytes)

    async def _record(self, job: Leased, verdict: Verdict) -> None:
        """Write what became of the job; it runs for us until that is on the disk."""
        while True:
            try:
                written = await self._write(job, verdict)
            except StokerError as error:
                _log.warning("job_unrecorded", queue=job.queue, job=job.id, cause=error.cause)
                if self._closing:
                    return
                await asyncio.sleep(BROKEN_SECONDS)
                continue
            if not written:
                _log.warning("job_lease_lost", queue=job.queue, job=job.id)
            elif isinstance(verdict, Ended):
                self._metrics.ended(job.queue, verdict.state)
            elif verdict.counted:
                self._metrics.ended(job.queue, "retried")
            return

    async def _write(self, job: Leased, verdict: Verdict) -> bool:
        lease = self._store.lease
        if isinstance(verdict, Ended):
            return await self._store.run(
                lambda queue: queue.finish(job, lease, verdict, time.time())
            )
        return await self._store.run(lambda queue: queue.put_back(job, lease, verdict, time.time()))


def _failed(error: StokerError) -> Outcome:
    return Outcome(error.status, error=error.to_wire())
