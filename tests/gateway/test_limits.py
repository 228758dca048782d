"""Limits of rate and concurrency: what is let through, what waits and what is refused."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from aiohttp import web as server
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import web
from harness.gateway import Bench
from stoker.gateway.limits import BURST_SECONDS, Limiter, Subject, due, subjects
from stoker.placement.errors import BadSpec, RateLimited
from stoker.placement.records import FunctionRecord
from stoker.placement.request_limits import limits_of
from stoker.placement.token_record import RequestLimits


@given(
    rate=st.floats(0.1, 1000),
    gaps=st.lists(st.floats(0, 3), min_size=1, max_size=60),
)
def test_no_span_of_time_has_more_starts_than_the_rate_allows(
    rate: float, gaps: list[float]
) -> None:
    now, next_at = 100.0, 0.0
    starts = []
    for gap in gaps:
        now += gap
        start_at, next_at = due(next_at, rate, now)
        assert start_at >= now
        starts.append(start_at)
    assert starts == sorted(starts)
    burst = max(1.0, BURST_SECONDS * rate)
    for first in range(len(starts)):
        for last in range(first, len(starts)):
            span = starts[last] - starts[first]
            assert last - first + 1 <= burst + span * rate + 1e-6


def test_who_comes_seldom_never_waits() -> None:
    next_at = 0.0
    for second in range(0, 100, 2):
        start_at, next_at = due(next_at, 0.5, float(second))
        assert start_at == second


def subject(**limits: Any) -> Subject:
    return Subject("k", "It", RequestLimits(**limits))


@settings(max_examples=25)
@given(
    seconds=st.lists(st.floats(0, 0.005), min_size=1, max_size=30),
    concurrency=st.integers(1, 4),
    queue_length=st.integers(0, 8),
)
def test_so_many_run_so_many_wait_and_the_rest_is_refused(
    seconds: list[float], concurrency: int, queue_length: int
) -> None:
    limited = subject(concurrency=concurrency, queue_length=queue_length)
    running, most, order = 0, 0, []

    async def call(limiter: Limiter, number: int, lasts: float) -> bool:
        nonlocal running, most
        try:
            async with limiter.admitted(limited):
                order.append(number)
                running += 1
                most = max(most, running)
                await asyncio.sleep(lasts)
                running -= 1
        except RateLimited as error:
            return error.retry_after_seconds is None
        return True

    async def all_at_once() -> list[bool]:
        limiter = Limiter(60.0)
        calls = [call(limiter, number, lasts) for number, lasts in enumerate(seconds)]
        return list(await asyncio.gather(*calls))

    admitted = asyncio.run(all_at_once())
    assert sum(admitted) == min(len(seconds), concurrency + queue_length)
    assert most <= concurrency
    assert order == sorted(order)


def test_who_leaves_the_queue_costs_neither_a_place_nor_the_rate() -> None:
    async def scenario() -> None:
        limiter = Limiter(60.0)
        limited = subject(requests_per_second=1.0, concurrency=1, queue_length=1)

        async def hold(seconds: float) -> None:
            async with limiter.admitted(limited):
                await asyncio.sleep(seconds)

        await hold(0)
        left = asyncio.create_task(hold(0))
        await asyncio.sleep(0.01)
        with pytest.raises(RateLimited) as refused:
            await hold(0)
        assert 1.5 < (refused.value.retry_after_seconds or 0) < 2.1
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        began = time.monotonic()
        await hold(0)
        assert time.monotonic() - began < 1.1

    asyncio.run(scenario())


def test_a_wait_beyond_the_maximum_is_refused_at_once() -> None:
    async def scenario() -> None:
        limiter = Limiter(5.0)
        limited = subject(requests_per_second=0.01)
        async with limiter.admitted(limited):
            pass
        began = time.monotonic()
        with pytest.raises(RateLimited):
            async with limiter.admitted(limited):
                pass
        assert time.monotonic() - began < 1

    asyncio.run(scenario())


def test_the_annotations_of_a_function_are_its_limits() -> None:
    keys = {
        "stoker/requests-per-second": "2.5",
        "stoker/concurrency-limit": "3",
        "stoker/queue-limit": "0",
    }
    assert limits_of(keys) == RequestLimits(2.5, 3, 0)
    for key, value in (("requests-per-second", "0"), ("concurrency-limit", "many")):
        with pytest.raises(BadSpec, match=key):
            limits_of({f"stoker/{key}": value})
    plain = FunctionRecord("f", "ns", "x")
    assert subjects(plain, None) == ()


async def half_a_second(request: server.Request) -> server.Response:
    await asyncio.sleep(0.5)
    return server.Response(text="ok")


def test_a_function_over_its_limit_queues_and_then_answers_429(bench: Bench) -> None:
    worker = bench.worker(half_a_second)
    annotations = {"stoker/concurrency-limit": "2", "stoker/queue-limit": "2"}
    function = bench.function(annotations=annotations)
    bench.instance(function, worker.address)
    with ThreadPoolExecutor(8) as pool:
        path = f"/function/{function.name}"
        answers = list(pool.map(lambda _: bench.call("POST", path, b"x"), range(8)))
    assert Counter(answer.status for answer in answers) == {200: 4, 429: 4}
    assert worker.in_flight_maximum == 2
    refused = next(answer for answer in answers if answer.status == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert "2 requests at once" in refused.body.decode()
    assert refused.headers["x-openfaas-internal"] == "gateway"
    assert max(answer.stages["queue"] for answer in answers if answer.status == 200) > 400


def test_a_token_has_a_limit_of_its_own_over_all_functions(bench: Bench) -> None:
    async def ok(request: server.Request) -> server.Response:
        return server.Response(text="ok")

    worker = bench.worker(ok)
    functions = [bench.function(task="chat") for _ in range(2)]
    for function in functions:
        bench.instance(function, worker.address)
    limits = {"requestsPerSecond": 1, "queueLength": 0}
    told = bench.system("POST", "/system/tokens", {"scope": "admin", "limits": limits}).json()
    assert told["limits"] == {"requestsPerSecond": 1.0}
    headers = web.bearer(told["token"])
    statuses = []
    for function in functions:
        body = {"model": function.name, "messages": [{"role": "user", "content": "x"}]}
        answer = bench.call("POST", "/v1/chat/completions", body, headers)
        statuses.append(answer.status)
    assert statuses == [200, 429]
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert int(answer.headers["retry-after"]) == 1
    body = {"model": functions[0].name, "messages": [{"role": "user", "content": "x"}]}
    others = web.bearer(bench.password)
    assert bench.call("POST", "/v1/chat/completions", body, others).status == 200
