"""A job that tells the outcome of another one to the URL that its caller gave."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from stoker.gateway.jobs.invocations import INVOKE_QUEUE
from stoker.gateway.jobs.pool import Work
from stoker.gateway.jobs.queue import JobQueue
from stoker.gateway.jobs.records import Again, Ended, JobStatus, Outcome, Verdict
from stoker.gateway.jobs.retries import Retries, is_passing, wait_seconds
from stoker.gateway.jobs.store import QueueRunner
from stoker.gateway.ssrf import Guard
from stoker.placement.errors import DestinationForbidden, NotFound, StokerError
from stoker.placement.names import DEFAULT_NAMESPACE

CALLBACK_RETRIES = Retries(attempts=8, wait_seconds_minimum=2.0)
# What means something else in a request, or is a secret between the function and its caller.
_NOT_TOLD = frozenset(
    (
        *("authorization", "connection", "content-length", "cookie", "expect", "host"),
        *("proxy-authenticate", "set-cookie", "transfer-encoding", "www-authenticate"),
    )
)


class Callbacks:
    """The handler of the queue of callbacks."""

    def __init__(self, store: QueueRunner, guard: Guard) -> None:
        self._store = store
        self._guard = guard

    async def __call__(self, work: Work) -> Verdict:
        job, began_at = work.job, time.monotonic()
        error: StokerError | None = None
        status = 0
        try:
            told, result = await self._store.ask(_outcome_of(job.id))
            destination = self._guard.check(str(job.head["url"]))
            headers = [*outcome_headers(told), ("x-retry-max", str(job.head["retry_maximum"]))]
            status = await self._guard.post(destination, headers, result)
        except (DestinationForbidden, NotFound) as forbidden:
            error = forbidden
        except StokerError as passing:
            error, status = passing, passing.status
        wire = None if error is None else error.to_wire()
        outcome = Outcome(status, seconds=time.monotonic() - began_at, error=wire)
        if 200 <= status < 300:
            return Ended("done", outcome)
        if is_passing(status) and job.runs <= CALLBACK_RETRIES.attempts:
            draw = random.random()  # noqa: S311 - spreads retries, guards nothing
            pause_seconds = wait_seconds(CALLBACK_RETRIES, job.runs, 0.0, draw)
            return Again(pause_seconds, True, outcome)
        # A redirect ends here too: nobody checked where it leads.
        return Ended("dead", outcome)


def outcome_headers(told: JobStatus) -> list[tuple[str, str]]:
    """The function's own headers, and what the contract adds, of a job that has ended."""
    assert told.outcome is not None
    outcome = told.outcome
    added = {
        "x-call-id": told.id,
        "x-function-status": str(outcome.status),
        "x-function-name": told.key.removesuffix(f".{DEFAULT_NAMESPACE}"),
        "x-duration-seconds": f"{outcome.seconds:f}",
        "x-retry": str(told.runs - 1),
    }
    kept = [(n, v) for n, v in outcome.headers if n not in _NOT_TOLD and n not in added]
    return [*kept, *added.items()]


def _outcome_of(name: str) -> Callable[[JobQueue], tuple[JobStatus, bytes]]:
    def read(queue: JobQueue) -> tuple[JobStatus, bytes]:
        return queue.status(INVOKE_QUEUE, name), queue.body(INVOKE_QUEUE, name, "result")

    return read
