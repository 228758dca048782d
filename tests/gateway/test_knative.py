"""What Knative's activator and queue-proxy do, through the real gateway."""

from __future__ import annotations

import asyncio
import http.client
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from aiohttp import web as server

from harness import web
from harness.gateway import Bench, stream
from harness.stack import wait_until
from stoker.gateway.hosts import Hosts, valid_domain
from stoker.placement.errors import BadRequest
from stoker.placement.records import PlaceAnswer, PlaceRequest, Scaling
from stoker.placement.timeouts import Timeouts

DOMAIN = "fn.example.com"


async def echo(request: server.Request) -> server.Response:
    return server.Response(body=await request.read(), headers={"X-Path": request.raw_path})


async def slow(request: server.Request) -> server.Response:
    await asyncio.sleep(30)
    return server.Response()


async def drips(seconds: float, *pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
        await asyncio.sleep(seconds)


@pytest.mark.parametrize(
    ("host", "function"),
    [
        ("chat.team.fn.example.com", "chat.team"),
        ("Chat.Team.FN.example.com:8080", "chat.team"),
        ("chat.team.fn.example.com.", "chat.team"),
        ("fn.example.com", None),
        ("team.fn.example.com", None),
        ("a.chat.team.fn.example.com", None),
        ("chat.team.fnxexample.com", None),
        ("chat.team.fn.example.com.evil.org", None),
        ("chat.team.fn.example.com:port", None),
        ("", None),
    ],
)
def test_a_host_below_the_domain_is_a_function(host: str, function: str | None) -> None:
    assert Hosts(valid_domain("Fn.Example.Com.")).function_of(host) == function


@pytest.mark.parametrize("domain", ["a b", "a..b", "-a.b", "a" * 300, "http://x"])
def test_a_domain_that_is_none_stops_the_start(domain: str) -> None:
    with pytest.raises(BadRequest, match="STOKER_DOMAIN"):
        valid_domain(domain)


def test_every_path_of_a_functions_host_is_the_functions(bench: Bench) -> None:
    function, worker = bench.function(), bench.worker(echo)
    bench.instance(function, worker.address)
    host = {"Host": f"{function.key}.{DOMAIN}"}

    answers = [bench.call("GET", path, None, host) for path in ("/a?b=1", "/system/info", "/")]
    unknown = bench.call("GET", "/", None, {"Host": f"nobody.openfaas-fn.{DOMAIN}"})

    assert [a.headers["x-path"] for a in answers] == ["/a?b=1", "/system/info", "/"]
    assert worker.requests[0].headers["Host"] == host["Host"]
    assert (unknown.status, unknown.headers["x-openfaas-internal"]) == (404, "gateway")
    assert bench.call("GET", "/healthz", None, {"Host": DOMAIN}).status == 200


def test_no_client_speaks_as_knatives_own_processes(bench: Bench) -> None:
    function, worker = bench.function(), bench.worker(echo)
    bench.instance(function, worker.address)
    internal = ("Knative-Serving-Revision", "Knative-Serving-Namespace", "K-Proxy-Request")
    sent = dict.fromkeys((*internal, "K-Network-Probe", "Traceparent"), "x")

    bench.call("GET", f"/function/{function.name}", None, sent)

    got = worker.requests[0].headers
    assert not {*internal, "K-Network-Probe"} & set(got)
    assert got["Traceparent"] == "x"


def test_of_14_requests_to_one_instance_of_concurrency_1_ten_wait_and_three_are_refused(
    bench: Bench,
) -> None:
    go_on = threading.Event()

    async def work(request: server.Request) -> server.Response:
        await asyncio.to_thread(go_on.wait, 20)
        return server.Response(body=b"done")

    async def full(asked: PlaceRequest) -> PlaceAnswer:
        return PlaceAnswer(())

    bench.place.answer = full
    function = bench.function(scaling=Scaling(concurrency=1, queue_per_instance=10))
    worker = bench.worker(work)
    bench.instance(function, worker.address)
    with ThreadPoolExecutor(14) as pool:
        calls = [pool.submit(bench.call, "GET", f"/function/{function.name}") for _ in range(14)]
        wait_until(lambda: sum(call.done() for call in calls) == 3, "three are refused")
        go_on.set()
        answers = [call.result() for call in calls]

    refused = [answer for answer in answers if answer.status != 200]
    assert [answer.status for answer in refused] == [503] * 3
    assert all(b"pending request queue full" in answer.body for answer in refused)
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert worker.in_flight_maximum == 1


def test_a_timeout_before_the_head_is_504_and_the_wait_for_an_instance_counts(bench: Bench) -> None:
    async def nothing(asked: PlaceRequest) -> PlaceAnswer:
        return PlaceAnswer(())

    bench.place.answer = nothing
    working = bench.function(timeouts=Timeouts(5.0, 0.2))
    worker = bench.worker(slow)
    bench.instance(working, worker.address)
    waiting = bench.function(timeouts=Timeouts(0.2))
    began = time.monotonic()

    answers = [bench.call("GET", f"/function/{f.name}") for f in (working, waiting)]

    assert time.monotonic() - began < 3
    assert [answer.status for answer in answers] == [504, 504]
    assert all(answer.body.startswith(b"request timeout") for answer in answers)
    assert all(answer.headers["x-openfaas-internal"] == "gateway" for answer in answers)
    assert worker.cancelled.wait(3)


@pytest.mark.parametrize(
    ("timeouts", "kind", "end"),
    [
        (Timeouts(0.5, 0.3), "text/plain", b"aarequest timeout"),
        (Timeouts(idle_seconds=0.1), "text/plain", b"arequest timeout"),
        (Timeouts(0.5), "text/event-stream", b"data: {"),
    ],
)
def test_a_timeout_in_mid_stream_ends_the_body_cleanly(
    bench: Bench, timeouts: Timeouts, kind: str, end: bytes
) -> None:
    pieces = (b"a\n\n", b"a\n\n", b"b") if "event" in kind else (b"a", b"a", b"b")
    function = bench.function(timeouts=timeouts)
    worker = bench.worker(lambda request: stream(request, drips(0.35, *pieces), kind))
    bench.instance(function, worker.address)

    answer = bench.call("GET", f"/function/{function.name}")

    assert answer.status == 200
    assert end in answer.body
    assert b"request timeout" in answer.body
    assert answer.body[-1:] != b"b"
    assert worker.cancelled.wait(3)


def test_an_answer_of_announced_length_breaks_off_at_its_timeout(bench: Bench) -> None:
    async def announced(request: server.Request) -> server.StreamResponse:
        response = server.StreamResponse(headers={"Content-Length": "10"})
        await response.prepare(request)
        await response.write(b"half")
        await asyncio.sleep(30)
        return response

    function, worker = bench.function(timeouts=Timeouts(0.3)), bench.worker(announced)
    bench.instance(function, worker.address)

    with pytest.raises(http.client.IncompleteRead):
        web.call("GET", f"{bench.url}/function/{function.name}")


def test_an_answer_within_its_timeouts_is_left_alone(bench: Bench) -> None:
    function = bench.function(timeouts=Timeouts(20.0, 10.0, 5.0))
    worker = bench.worker(lambda request: stream(request, drips(0.05, b"a", b"b"), "text/plain"))
    bench.instance(function, worker.address)

    answer = bench.call("GET", f"/function/{function.name}")

    assert (answer.status, answer.body) == (200, b"ab")


def test_a_timeout_while_comments_say_who_waits_comes_as_their_streams_error(bench: Bench) -> None:
    async def nothing(asked: PlaceRequest) -> PlaceAnswer:
        return PlaceAnswer(())

    bench.place.answer = nothing
    function = bench.function(task="chat", timeouts=Timeouts(response_start_seconds=3.3))
    messages = [{"role": "user", "content": "Hello"}]
    body = {"model": function.name, "messages": messages, "stream": True}

    answer = bench.call("POST", "/v1/chat/completions", body, web.bearer(bench.password))

    lines = [line for line in answer.body.decode().splitlines() if line]
    assert answer.status == 200
    assert lines[0].startswith(": queued")
    assert "request timeout" in lines[-1].removeprefix("data: ")
