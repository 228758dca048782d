"""Streams of models whose instance is lost go on at another one, as if nothing had happened."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web as server

from harness.gateway import Bench, Handler, closed_address, reset
from stoker.gateway.invoke import RESUMES_MAXIMUM
from stoker.placement.records import (
    Assignment,
    CheckpointRef,
    FunctionRecord,
    PlaceAnswer,
    PlaceRequest,
    encode,
)
from stoker.placement.resumable import RESUME_HEADER, answer_line, begin_line, opened

OTHER_MODEL = CheckpointRef("s3://models/n", "6" * 64, 1000, packed=True)
MODEL = CheckpointRef("s3://models/m", "5" * 64, 1000, packed=True)
BODY = json.dumps({"stream": True, "messages": []}).encode()


def _told(first: int, count: int) -> list[bytes]:
    """Events with their lines, the first of all with whose stream it is."""
    chunks = [answer_line(0, [100 + n]) + b"data: %d\n\n" % n for n in range(first, first + count)]
    if first == 0:
        chunks[0] = begin_line("chatcmpl-1", 17, 2**63 + 1) + chunks[0]
    return chunks


def _dying(*chunks: bytes) -> Handler:
    """Says these chunks, and half an event; then its process is gone."""

    async def answer(request: server.Request) -> server.StreamResponse:
        response = server.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for chunk in (*chunks, answer_line(0, [999]) + b"data: lo"):
            await response.write(chunk)
            await asyncio.sleep(0.02)
        assert request.transport is not None
        request.transport.abort()
        return response

    return answer


def _ending(*chunks: bytes) -> Handler:
    async def answer(request: server.Request) -> server.StreamResponse:
        response = server.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
        return response

    return answer


def _model(bench: Bench) -> FunctionRecord:
    return bench.function(task="chat", checkpoint=MODEL)


def _places(bench: Bench, assignments: Iterator[Assignment]) -> None:
    async def place(_asked: PlaceRequest) -> PlaceAnswer:
        return PlaceAnswer((next(assignments),))

    bench.place.answer = place


def test_a_stream_goes_on_behind_what_its_client_was_told(bench: Bench) -> None:
    function = _model(bench)
    first, second = bench.worker(_dying(*_told(0, 3))), bench.worker(_dying(*_told(3, 1)))
    third = bench.worker(_ending(*_told(4, 2), b"data: [DONE]\n\n"))
    bench.instance(function, first.address)
    _places(bench, (bench.assignment(function, w.address) for w in (second, third)))

    answer = bench.call("POST", f"/function/{function.name}", BODY)

    assert answer.body == b"".join(b"data: %d\n\n" % n for n in range(6)) + b"data: [DONE]\n\n"
    assert RESUME_HEADER not in first.requests[0].headers
    assert first.bodies == [BODY]
    for worker, tokens in ((second, [100, 101, 102]), (third, [100, 101, 102, 103])):
        assert worker.requests[0].headers[RESUME_HEADER] == "1"
        log, body = opened(worker.bodies[0])
        assert body == BODY
        assert (log.answer_id, log.created, log.seed) == ("chatcmpl-1", 17, 2**63 + 1)
        assert log.told[0].tokens == tokens
    metrics = bench.system("GET", "/metrics").body.decode()
    assert f'gateway_streams_resumed_total{{function_name="{function.key}"}} 2.0' in metrics


def test_a_stream_that_nobody_can_go_on_with_ends_with_a_typed_event(bench: Bench) -> None:
    function, worker = _model(bench), bench.worker(_dying(*_told(0, 2)))
    bench.instance(function, worker.address)
    _places(bench, iter(lambda: bench.assignment(function, closed_address()), None))

    answer = bench.call("POST", f"/function/{function.name}", BODY)

    *events, last, rest = answer.body.decode().split("\n\n")
    assert (events, rest) == (["data: 0", "data: 1"], "")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "unavailable"


def test_a_stream_that_kills_every_instance_is_given_up(bench: Bench) -> None:
    function = _model(bench)
    workers = [bench.worker(_dying(*_told(n, 1))) for n in range(RESUMES_MAXIMUM + 2)]
    bench.instance(function, workers[0].address)
    _places(bench, (bench.assignment(function, w.address) for w in workers[1:]))

    answer = bench.call("POST", f"/function/{function.name}", BODY)

    assert json.loads(answer.body.split(b"data: ")[-1])["error"]["code"] == "unavailable"
    assert [len(worker.requests) for worker in workers] == [1] * (RESUMES_MAXIMUM + 1) + [0]


def test_a_whole_answer_of_a_model_is_asked_for_again(bench: Bench) -> None:
    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(len(BODY))
        reset(writer)

    async def answered(request: server.Request) -> server.Response:
        return server.Response(body=b"whole")

    function, worker = _model(bench), bench.worker(answered)
    bench.instance(function, bench.raw_worker(die))
    _places(bench, iter([bench.assignment(function, worker.address)]))
    answer = bench.call("POST", f"/function/{function.name}", BODY)
    assert (answer.status, answer.body) == (200, b"whole")
    assert worker.bodies == [BODY]


def test_what_runs_code_is_never_asked_to_go_on(bench: Bench) -> None:
    function = bench.function(task="chat", checkpoint=MODEL, code_digest="0" * 64)
    worker = bench.worker(_dying(*_told(0, 2)))
    bench.instance(function, worker.address)
    answer = bench.call("POST", f"/function/{function.name}", BODY)
    last = answer.body.split(b"data: ")[-1]
    assert json.loads(last)["error"]["code"] == "instance_lost"


@pytest.mark.parametrize(
    ("changed", "goes_on"), [({"priority": 1}, True), ({"checkpoint": OTHER_MODEL}, False)]
)
def test_only_the_same_model_goes_on_with_an_answer(
    bench: Bench, changed: dict[str, Any], goes_on: bool
) -> None:
    function = _model(bench)
    after = replace(function, generation=2, **changed)
    first, second = bench.worker(_dying(*_told(0, 2))), bench.worker(_ending(b"data: rest\n\n"))
    bench.instance(function, first.address)

    async def place(_asked: PlaceRequest) -> PlaceAnswer:
        bench.store.put(after.path, encode(after))
        await asyncio.sleep(0.5)
        return PlaceAnswer((bench.assignment(after, second.address),))

    bench.place.answer = place
    answer = bench.call("POST", f"/function/{function.name}", BODY)

    last = answer.body.split(b"data: ")[-1]
    if goes_on:
        assert last == b"rest\n\n"
    else:
        assert json.loads(last)["error"]["code"] == "unavailable"
    assert len(second.requests) == goes_on
