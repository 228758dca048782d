"""The queue's metrics. Depths are those of the machine's one queue, counts those of this process.

Labels are the queues and states that there are, so their number is bounded.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge

from stoker.gateway.jobs.queue import Depth
from stoker.gateway.jobs.records import STATES


class JobMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._accepted = Counter(
            "gateway_jobs_accepted", "Jobs that were answered 202.", registry=registry
        )
        self._ended = Counter(
            "gateway_jobs_ended",
            "Runs of jobs by what became of them; `retried` means that another follows.",
            ["queue", "outcome"],
            registry=registry,
        )
        self._interrupted = Counter(
            "gateway_jobs_interrupted",
            "Runs whose process ended under them, and which began again.",
            registry=registry,
        )
        self._depth = Gauge("gateway_jobs", "Jobs by state.", ["queue", "state"], registry=registry)
        self._overdue_seconds = Gauge(
            "gateway_jobs_overdue_seconds",
            "How long the job that waits longest could have run.",
            ["queue"],
            registry=registry,
        )

    def accepted(self) -> None:
        self._accepted.inc()

    def ended(self, queue: str, outcome: str) -> None:
        self._ended.labels(queue, outcome).inc()

    def interrupted(self, count: int) -> None:
        self._interrupted.inc(count)

    def measured(self, depths: Mapping[str, Depth]) -> None:
        """What the next scrape tells."""
        now = time.time()
        for queue, depth in depths.items():
            for state in STATES:
                self._depth.labels(queue, state).set(depth.jobs.get(state, 0))
            overdue = 0.0 if depth.due_since is None else max(0.0, now - depth.due_since)
            self._overdue_seconds.labels(queue).set(overdue)
