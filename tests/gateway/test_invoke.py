"""The hot path, through the real gunicorn."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from aiohttp import web as server

from harness import web
from harness.gateway import Bench, stream
from stoker.gateway.invoke import prefill_seconds
from stoker.placement.errors import NoCapacity
from stoker.placement.instance_token import instance_token
from stoker.placement.records import PlaceAnswer, PlaceRequest, Scaling

STAGES = ["queue", "place", "fetch", "load", "init", "prefill"]


async def echo(request: server.Request) -> server.Response:
    return server.Response(
        body=await request.read(),
        headers={"X-Path": request.raw_path, "X-Method": request.method, "X-Own": "a"},
    )


def test_a_warm_call_reaches_the_instance_and_comes_back_whole(bench: Bench) -> None:
    function, worker = bench.function(), bench.worker(echo)
    assigned = bench.instance(function, worker.address)
    answer = bench.call(
        "PUT", f"/function/{function.name}/a%2Fb/../c?x=1&y=%20", b"\x00body", {"X-Call-Id": "c-1"}
    )
    assert (answer.status, answer.body) == (200, b"\x00body")
    assert answer.headers["x-path"] == "/a%2Fb/../c?x=1&y=%20"
    assert answer.headers["x-method"] == "PUT"
    assert answer.headers["x-call-id"] == "c-1"
    assert answer.headers["x-served-by"] == assigned.instance_id
    assert abs(int(answer.headers["x-start-time"]) / 1e9 - time.time()) < 60
    assert float(answer.headers["x-duration-seconds"]) > 0
    assert list(answer.stages) == STAGES
    assert "x-openfaas-internal" not in answer.headers


def test_the_instance_gets_the_headers_of_the_contract_and_no_secret(bench: Bench) -> None:
    function, worker = bench.function(), bench.worker(echo)
    assigned = bench.instance(function, worker.address)
    sent = {
        "X-Forwarded-For": "10.0.0.1",
        "X-Stoker-Token": "forged",
        "X-Stoker-Anything": "forged",
        "Connection": "X-Hop",
        "X-Hop": "1",
        "Accept-Encoding": "gzip",
        **web.basic(bench.password),
    }
    assert bench.call("POST", f"/function/{function.key}", b"x", sent).status == 200
    got = worker.requests[0].headers
    assert got["X-Forwarded-For"] == "10.0.0.1, 127.0.0.1"
    assert got["X-Forwarded-Host"] == got["Host"] == f"127.0.0.1:{bench.port}"
    assert got["X-Forwarded-Proto"] == "http"
    assert got["Forwarded"] == (
        f'for=10.0.0.1;host="127.0.0.1:{bench.port}";proto=http, for=127.0.0.1'
    )
    assert got["Accept-Encoding"] == "gzip"
    assert int(got["X-Start-Time"]) > 1e18
    own = instance_token(bench.token, assigned.instance_id)
    assert got.getall("X-Stoker-Token") == [own]
    assert bench.token not in str(got)
    assert not {"X-Stoker-Anything", "X-Hop", "Authorization"} & set(got)
    own = {"Authorization": "Bearer of-the-function"}
    bench.call("GET", f"/function/{function.name}", None, own)
    assert worker.requests[1].headers["Authorization"] == "Bearer of-the-function"
    assert len(worker.requests[1].headers["X-Call-Id"]) == 36


def test_an_unknown_function_is_404_with_cause_and_remedy(bench: Bench) -> None:
    answer = bench.call("POST", "/function/nobody", b"x")
    assert (answer.status, answer.headers["x-openfaas-internal"]) == (404, "gateway")
    cause = b"Expected a deployed function, found none called 'nobody'."
    assert answer.body == cause + b" Deploy it first; `stoker ls` lists what is deployed.\n"
    assert set(answer.stages.values()) == {0}
    assert bench.call("POST", "/function/.openfaas-fn", b"x").status == 404
    as_json = bench.call("POST", "/function/nobody", b"x", {"Accept": "application/json"})
    assert as_json.json()["error"]["code"] == "function_not_found"


def test_an_unknown_method_is_405(bench: Bench) -> None:
    answer = bench.call("TRACE", f"/function/{bench.function().name}")
    assert (answer.status, "PATCH" in answer.headers["allow"]) == (405, True)


def test_errors_and_redirects_of_a_function_pass_unchanged(bench: Bench) -> None:
    async def answer(request: server.Request) -> server.Response:
        code = int(request.path.rpartition("/")[2])
        return server.Response(status=code, body=b"own", headers={"Location": "http://x/"})

    function, worker = bench.function(), bench.worker(answer)
    bench.instance(function, worker.address)
    for code in (302, 404, 500, 503):
        got = bench.call("GET", f"/function/{function.name}/{code}")
        assert (got.status, got.body, got.headers["location"]) == (code, b"own", "http://x/")
        assert "x-openfaas-internal" not in got.headers


def test_each_event_leaves_at_once_whatever_accept_says(bench: Bench) -> None:
    async def ticks() -> AsyncIterator[bytes]:
        for number in range(4):
            yield b"data: %d\n\n" % number
            await asyncio.sleep(0.2)

    function = bench.function()
    worker = bench.worker(lambda request: stream(request, ticks(), "text/event-stream"))
    bench.instance(function, worker.address)
    connection, path = web.connect(f"{bench.url}/function/{function.name}")
    connection.request("GET", path, headers={"Accept": "application/json"})
    began = time.monotonic()
    arrivals = [(event, time.monotonic() - began) for event in web.events(connection.getresponse())]
    connection.close()
    assert [event for event, _ in arrivals] == ["0", "1", "2", "3"]
    gaps = [b[1] - a[1] for a, b in itertools.pairwise(arrivals)]
    assert all(0.1 < gap < 0.5 for gap in gaps), gaps


def test_two_hundred_calls_to_a_cold_function_ask_placement_one_at_a_time(bench: Bench) -> None:
    function = bench.function(scaling=Scaling(maximum=1, concurrency=8))

    async def slow(request: server.Request) -> server.Response:
        await asyncio.sleep(0.02)
        return server.Response(body=b"ok")

    worker = bench.worker(slow)
    assigned = bench.assignment(function, worker.address)

    async def place(asked: PlaceRequest) -> PlaceAnswer:
        await asyncio.sleep(0.3)
        return PlaceAnswer((assigned,))

    bench.place.answer = place
    path = f"/function/{function.name}"
    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(lambda _: bench.call("POST", path, b"x"), range(200)))
    assert [a.status for a in answers] == [200] * 200
    assert {a.headers["x-served-by"] for a in answers} == {assigned.instance_id}
    assert bench.place.together_maximum == 1
    assert len(bench.place.asked) <= 3
    assert worker.in_flight_maximum == 8
    first = max(answers, key=lambda a: a.stages["place"])
    assert 200 < first.stages["place"] < 1500
    assert max(a.stages["queue"] for a in answers) > 100


def test_a_leader_reads_the_whole_demand_each_second(bench: Bench) -> None:
    release = threading.Event()

    async def held(request: server.Request) -> server.Response:
        await asyncio.to_thread(release.wait, 10)
        return server.Response()

    function = bench.function(scaling=Scaling(concurrency=1))
    bench.instance(function, bench.worker(held).address)

    async def same(asked: PlaceRequest) -> PlaceAnswer:
        return PlaceAnswer(())

    bench.place.answer = same

    def demand() -> tuple[int, int]:
        if not bench.place.reports or function.key not in bench.place.reports[-1].functions:
            return (0, 0)
        told = bench.place.reports[-1].functions[function.key]
        return (told.in_flight, told.queued)

    def until(wanted: tuple[int, int]) -> None:
        deadline = time.monotonic() + 5
        while demand() != wanted:
            assert time.monotonic() < deadline, demand()
            time.sleep(0.02)

    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(bench.call, "GET", f"/function/{function.name}") for _ in range(3)]
        until((1, 2))
        release.set()
        assert [c.result().status for c in calls] == [200] * 3
    until((0, 0))
    before = bench.place.reports[-1].functions[function.key].idle_seconds
    time.sleep(1.2)
    assert bench.place.reports[-1].functions[function.key].idle_seconds > before
    assert bench.place.asked[0].demand.queued > 0
    assert bench.place.asked[0].demand.called_version >= 0


def test_an_error_of_placement_reaches_all_who_wait(bench: Bench) -> None:
    async def full(asked: PlaceRequest) -> server.Response:
        error = NoCapacity("No node has room.", "Add a node.", retry_after_seconds=7)
        return server.Response(status=503, body=json.dumps({"error": error.to_wire()}).encode())

    bench.place.answer = full
    answer = bench.call("GET", f"/function/{bench.function().name}")
    assert (answer.status, answer.headers["retry-after"]) == (503, "7")
    assert answer.body == b"No node has room. Add a node.\n"
    assert answer.headers["x-openfaas-internal"] == "gateway"


def test_more_than_a_thousand_waiting_are_refused_with_retry_after(bench: Bench) -> None:
    async def never(asked: PlaceRequest) -> PlaceAnswer:
        await asyncio.sleep(3600)
        raise AssertionError

    bench.place.answer = never
    function = bench.function()

    def open_call(_: int) -> socket.socket:
        opened = socket.create_connection(("127.0.0.1", bench.port))
        opened.sendall(f"GET /function/{function.name} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return opened

    began = time.monotonic()
    waiting = [open_call(n) for n in range(1000)]
    try:
        # A connection that the kernel drops in a burst comes again after a whole second.
        assert time.monotonic() - began < 1
        deadline = time.monotonic() + 10
        while (refused := probe(bench, function.name)) is None:
            assert time.monotonic() < deadline
        assert refused.status == 429
        assert int(refused.headers["retry-after"]) >= 1
    finally:
        for opened in waiting:
            opened.close()


def probe(bench: Bench, name: str) -> web.Answer | None:
    """The answer of one more call, or None if it was queued too."""
    connection, path = web.connect(f"{bench.url}/function/{name}")
    connection.timeout = 0.5
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return web.Answer(response.status, headers, response.read())
    except TimeoutError:
        return None
    finally:
        connection.close()


def test_a_client_that_leaves_cancels_the_instance_within_a_second(bench: Bench) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"data: first\n\n"
        await asyncio.sleep(3600)

    function = bench.function()
    worker = bench.worker(lambda request: stream(request, endless(), "text/event-stream"))
    bench.instance(function, worker.address)
    connection, path = web.connect(f"{bench.url}/function/{function.name}")
    connection.request("GET", path)
    response = connection.getresponse()
    assert next(web.events(response)) == "first"
    response.close()
    connection.close()
    assert worker.cancelled.wait(1.0)
    rows = bench.system("GET", "/system/instances").json()
    assert [r["in_flight"] for r in rows if r["function"] == function.key] == [0]


def test_a_client_that_leaves_the_queue_leaves_its_place(bench: Bench) -> None:
    async def never(asked: PlaceRequest) -> PlaceAnswer:
        await asyncio.sleep(3600)
        raise AssertionError

    bench.place.answer = never
    function = bench.function()
    opened = socket.create_connection(("127.0.0.1", bench.port))
    opened.sendall(f"GET /function/{function.name} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    time.sleep(0.1)
    opened.close()
    deadline = time.monotonic() + 5
    while True:
        told = [r.functions.get(function.key) for r in bench.place.reports[-1:]]
        if told and told[0] is not None and told[0].queued == 0 and told[0].idle_seconds > 0:
            return
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_body_over_the_limit_is_413_by_its_length_and_while_it_comes(bench: Bench) -> None:
    function, worker = bench.function(), bench.worker(echo)
    bench.instance(function, worker.address)
    path = f"/function/{function.name}"
    whole = bench.call("POST", path, b"x" * 1_000_001)
    assert whole.status == 413
    assert whole.body.startswith(b"Expected a body of at most 1000000 bytes, found 1000001.")
    connection, _ = web.connect(bench.url)
    connection.request("POST", path, iter([b"x" * 600_000] * 2), encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()
    assert worker.requests == []
    assert bench.call("POST", path, b"x" * 1_000_000).status == 200


def test_a_function_that_is_removed_fails_who_waits(bench: Bench) -> None:
    async def nothing(asked: PlaceRequest) -> PlaceAnswer:
        return PlaceAnswer(())

    bench.place.answer = nothing
    function = bench.function()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(bench.call, "GET", f"/function/{function.name}")
        time.sleep(0.3)
        bench.store.delete(function.path)
        assert waiting.result(5).status == 404


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ("fetch;dur=0.0, load;dur=0.0, init;dur=0.0, prefill;dur=77.5", 0.0775),
        ("prefill;dur=12", 0.012),
        ("prefill;dur=999999999", 3600.0),
        ("init;dur=5.0", 0.0),
        ("prefill;dur=-5", 0.0),
        ("prefill;dur=1e9", 0.0),
        ("prefill;dur=1.2.3", 0.0),
        ("", 0.0),
    ],
)
def test_an_instances_prefill_is_read_and_nonsense_is_not(stages: str, expected: float) -> None:
    assert prefill_seconds(stages) == expected
