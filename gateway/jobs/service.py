"""Everything of the queue that lives as long as one gateway process. Only wiring."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from prometheus_client import CollectorRegistry

from stoker.gateway.audit import AuditLog
from stoker.gateway.auth import Credentials
from stoker.gateway.exchange import BufferBudget
from stoker.gateway.invoke import Invoker
from stoker.gateway.jobs.callbacks import Callbacks
from stoker.gateway.jobs.invocations import (
    CALLBACK_QUEUE,
    INVOKE_QUEUE,
    RESULT_BYTES_MAXIMUM,
    Invocations,
)
from stoker.gateway.jobs.metrics import JobMetrics
from stoker.gateway.jobs.pool import Limits, Pool
from stoker.gateway.jobs.queue import Depth, JobQueue
from stoker.gateway.jobs.records import Bounds
from stoker.gateway.jobs.routes import AsyncRoutes
from stoker.gateway.jobs.store import JobStore
from stoker.gateway.ssrf import Guard

# No function, and no receiver of callbacks, keeps the others' jobs from running.
INVOCATIONS = Limits(jobs=64, jobs_of_key=16)
CALLBACKS = Limits(jobs=16, jobs_of_key=4)


class Jobs:
    """To be made inside the event loop. StokerError if the queue cannot be opened."""

    def __init__(
        self,
        folder: Path,
        jobs_maximum: int,
        invoker: Invoker,
        guard: Guard,
        credentials: Credentials,
        budget: BufferBudget,
        registry: CollectorRegistry,
        audit: AuditLog,
        body_bytes_maximum: int,
    ) -> None:
        self._metrics = JobMetrics(registry)
        self._pools: list[Pool] = []
        # A part of the budget that holds a body holds an answer as well.
        kept_bytes = min(RESULT_BYTES_MAXIMUM, body_bytes_maximum)
        bounds = Bounds(jobs_maximum=jobs_maximum)
        self._store = JobStore(folder, bounds, self._wake, self._metrics.interrupted)
        for queue, handler, limits in (
            (INVOKE_QUEUE, Invocations(invoker, budget, kept_bytes), INVOCATIONS),
            (CALLBACK_QUEUE, Callbacks(self._store, guard), CALLBACKS),
        ):
            pool = Pool(self._store, queue, handler, limits, budget, self._metrics)
            self._pools.append(pool)
        self.routes = AsyncRoutes(
            self._store, invoker, guard, credentials, self._metrics, audit, body_bytes_maximum
        )

    async def measure(self) -> None:
        """Bring the depths that the metrics tell up to date."""

        def depths(queue: JobQueue) -> dict[str, Depth]:
            now = time.time()
            return {name: queue.depth(name, now) for name in (INVOKE_QUEUE, CALLBACK_QUEUE)}

        self._metrics.measured(await self._store.ask(depths))

    async def close(self) -> None:
        """Give back what runs, and end."""
        await asyncio.gather(*(pool.close() for pool in self._pools))
        await self._store.close()

    def _wake(self) -> None:
        for pool in self._pools:
            pool.wake()
