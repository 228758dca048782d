"""Instances that are gone: before the request, under it, and in the middle of the answer."""

from __future__ import annotations

import asyncio
import http.client
import json

import pytest
from aiohttp import web as server

from harness.gateway import Bench, closed_address, reset
from stoker.placement.records import PlaceAnswer, PlaceRequest


async def echo(request: server.Request) -> server.Response:
    return server.Response(body=await request.read())


def test_a_refused_connection_is_placed_again(bench: Bench) -> None:
    function, worker = bench.function(), bench.worker(echo)
    bench.instance(function, closed_address())
    second = bench.assignment(function, worker.address)

    async def place(asked: PlaceRequest) -> PlaceAnswer:
        return PlaceAnswer((second,))

    bench.place.answer = place
    answer = bench.call("POST", f"/function/{function.name}", b"again")
    assert (answer.status, answer.body) == (200, b"again")
    assert answer.headers["x-served-by"] == second.instance_id
    assert len(bench.place.asked) == 1


def test_after_three_refused_connections_the_client_is_told(bench: Bench) -> None:
    function = bench.function()

    async def place(asked: PlaceRequest) -> PlaceAnswer:
        return PlaceAnswer((bench.assignment(function, closed_address()),))

    bench.place.answer = place
    answer = bench.call("POST", f"/function/{function.name}", b"x")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert len(bench.place.asked) == 3


async def die_after_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(4)
    reset(writer)


def test_an_instance_that_dies_at_work_is_502_and_the_request_is_not_repeated(
    bench: Bench,
) -> None:
    function = bench.function(code_digest="0" * 64)
    bench.instance(function, bench.raw_worker(die_after_request), "starting")
    answer = bench.call(
        "POST", f"/function/{function.name}", b"work", {"Accept": "application/json"}
    )
    assert (answer.status, answer.json()["error"]["code"]) == (502, "instance_lost")
    assert bench.place.asked == []


def test_a_model_that_died_before_it_served_is_placed_again(bench: Bench) -> None:
    function, worker = bench.function(task="chat"), bench.worker(echo)
    bench.instance(function, bench.raw_worker(die_after_request), "starting")
    second = bench.assignment(function, worker.address)

    async def place(asked: PlaceRequest) -> PlaceAnswer:
        return PlaceAnswer((second,))

    bench.place.answer = place
    answer = bench.call("POST", f"/function/{function.name}", b"work")
    assert (answer.status, answer.body) == (200, b"work")


async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Three events and a half, then the process dies."""
    head = await reader.readuntil(b"\r\n\r\n")
    kind = b"text/plain" if b"/plain" in head else b"text/event-stream"
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n" % kind
    )
    for chunk in (b"data: 1\n\n", b"data: 2\n\ndata: 3", b"\n\n", b'data: {"ha'):
        writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        await writer.drain()
        await asyncio.sleep(0.05)
    reset(writer)


def test_a_stream_that_loses_its_instance_ends_with_a_typed_event(bench: Bench) -> None:
    function = bench.function()
    bench.instance(function, bench.raw_worker(cut))
    answer = bench.call("GET", f"/function/{function.name}")
    events = [part for part in answer.body.decode().split("\n\n") if part]
    assert events[:3] == ["data: 1", "data: 2", "data: 3"]
    assert len(events) == 4
    assert json.loads(events[3].removeprefix("data: "))["error"]["code"] == "instance_lost"


def test_another_body_that_loses_its_instance_breaks_visibly(bench: Bench) -> None:
    function = bench.function()
    bench.instance(function, bench.raw_worker(cut))
    with pytest.raises(http.client.IncompleteRead):
        bench.call("GET", f"/function/{function.name}/plain")


def test_an_instance_that_was_not_meant_is_left_and_the_request_placed_again(
    bench: Bench,
) -> None:
    async def another(request: server.Request) -> server.Response:
        return server.Response(status=421, headers={"X-Stoker-Misdirected": "1"})

    function, stranger, worker = bench.function(), bench.worker(another), bench.worker(echo)
    stale = bench.instance(function, stranger.address)
    second = bench.assignment(function, worker.address)

    async def place(asked: PlaceRequest) -> PlaceAnswer:
        return PlaceAnswer((second,))

    bench.place.answer = place
    answer = bench.call("POST", f"/function/{function.name}", b"mine")
    assert (answer.status, answer.body) == (200, b"mine")
    assert stranger.requests[0].headers["X-Stoker-Instance"] == stale.instance_id
    assert worker.requests[0].headers["X-Stoker-Instance"] == second.instance_id
