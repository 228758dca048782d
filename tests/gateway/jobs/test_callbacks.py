"""What a callback carries, and where it ends, without a gateway around it."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest

from harness.stack import free_port
from stoker.gateway.jobs.callbacks import CALLBACK_RETRIES, Callbacks, outcome_headers
from stoker.gateway.jobs.pool import Work
from stoker.gateway.jobs.queue import JobQueue
from stoker.gateway.jobs.records import Again, Bounds, Ended, Job, Leased, Outcome, Verdict
from stoker.gateway.jobs.schema import SCHEMA
from stoker.gateway.ssrf import Guard, PrivateDestinations

T = TypeVar("T")


class Here:
    """A queue in memory, run where it is asked."""

    lease = "me"

    def __init__(self) -> None:
        db = sqlite3.connect(":memory:", isolation_level=None)
        db.executescript(SCHEMA)
        self.queue = JobQueue(db, Bounds())

    async def run(self, operation: Callable[[JobQueue], T]) -> T:
        return operation(self.queue)

    ask = run


@pytest.fixture
def here() -> Here:
    made = Here()
    made.queue.accept(Job("invoke", "a", "f.openfaas-fn", {}, b"asked"), 1.0)
    (job,) = made.queue.claim("invoke", "me", 1, lambda key: 1, 2.0).jobs
    headers = (
        *(("content-type", "text/csv"), ("x-own", "1"), ("x-function-status", "forged")),
        *(("host", "inside"), ("authorization", "canary"), ("set-cookie", "canary")),
    )
    made.queue.finish(job, "me", Ended("done", Outcome(201, headers, 1.5), b"result"), 3.0)
    return made


def tell(here: Here, address: str, runs: int = 1, call_id: str = "a") -> Verdict:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return [address]

    host = f"hooks.test:{free_port()}"
    head = {"url": f"http://{host}/", "retry_maximum": 3}
    job = Leased("callback", call_id, host, head, runs, time.time(), 0)

    async def main() -> Verdict:
        guard = Guard(PrivateDestinations.parse("127.0.0.1"), resolve)
        return await Callbacks(here, guard)(Work(job, b""))

    return asyncio.run(main())


def test_a_callback_carries_the_functions_headers_but_none_that_is_a_secret(here: Here) -> None:
    assert dict(outcome_headers(here.queue.status("invoke", "a"))) == {
        "content-type": "text/csv",
        "x-own": "1",
        "x-call-id": "a",
        "x-function-status": "201",
        "x-function-name": "f",
        "x-duration-seconds": "1.500000",
        "x-retry": "0",
    }


def test_who_does_not_listen_is_tried_again_and_then_given_up(here: Here) -> None:
    again = tell(here, "127.0.0.1")
    assert isinstance(again, Again)
    assert (again.counted, again.outcome.status) == (True, 503)
    last = tell(here, "127.0.0.1", runs=CALLBACK_RETRIES.attempts + 1)
    assert isinstance(last, Ended)
    assert last.outcome.error is not None
    assert (last.state, last.outcome.error["code"]) == ("dead", "unavailable")


def test_a_forbidden_destination_and_a_result_that_is_gone_are_given_up_at_once(
    here: Here,
) -> None:
    for verdict, code in (
        (tell(here, "127.0.0.2"), "destination_forbidden"),
        (tell(here, "127.0.0.1", call_id="gone"), "not_found"),
    ):
        assert isinstance(verdict, Ended)
        assert verdict.outcome.error is not None
        assert (verdict.state, verdict.outcome.error["code"]) == ("dead", code)
