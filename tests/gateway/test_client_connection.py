"""What arrives on a socket: too long, too slow, ambiguous. Raw bytes against the real server."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator

import pytest
from aiohttp import web as server

from harness.gateway import Bench, stream
from harness.raw_http import Raw, said
from stoker.gateway.client_connection import RECEIVE_BYTES_PER_SECOND, receive_deadline


async def echo(request: server.Request) -> server.Response:
    return server.Response(body=await request.read())


@pytest.fixture(scope="module")
def path(running: Bench) -> str:
    function = running.function()
    running.instance(function, running.worker(echo).address)
    return f"/function/{function.name}"


def post(path: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


AMBIGUOUS = {
    "two lengths that differ": ("Content-Length: 4", "Content-Length: 5"),
    "two lengths that agree": ("Content-Length: 4", "Content-Length: 4"),
    "two lengths in one": ("Content-Length: 4, 4",),
    "a length beside chunks": ("Content-Length: 4", "Transfer-Encoding: chunked"),
    "chunks beside a length": ("Transfer-Encoding: chunked", "Content-Length: 4"),
    "chunks twice": ("Transfer-Encoding: chunked, chunked",),
    "chunks on two lines": ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    "chunks that are not last": ("Transfer-Encoding: chunked, identity",),
    "a coding without chunks": ("Transfer-Encoding: identity",),
    "a space before the colon": ("Transfer-Encoding : chunked",),
    "a folded line": ("X-A: b", " Transfer-Encoding: chunked"),
    "a signed length": ("Content-Length: +4",),
    "a hexadecimal length": ("Content-Length: 0x4",),
    "two hosts": ("Host: y",),
    "a control character": ("X-A: b\x00c",),
}


@pytest.mark.parametrize("headers", AMBIGUOUS.values(), ids=list(AMBIGUOUS))
def test_a_request_that_two_servers_could_read_differently_is_400_and_the_end(
    running: Bench, path: str, headers: tuple[str, ...]
) -> None:
    smuggled = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    answered = said(running.port, post(path, *headers, body=smuggled))
    assert answered.statuses == [400], answered.received


def test_a_coding_that_nobody_undoes_is_501(running: Bench, path: str) -> None:
    for coding in ("gzip, chunked", "br"):
        answered = said(running.port, post(path, f"Transfer-Encoding: {coding}", body=b"0\r\n\r\n"))
        assert answered.statuses == [501], coding


@pytest.mark.parametrize("size", ["4 ", "-1", "0x4", "g", ""])
def test_a_chunk_of_a_size_that_is_none_is_400(running: Bench, path: str, size: str) -> None:
    body = f"{size}\r\nabcd\r\n0\r\n\r\n".encode()
    assert said(running.port, post(path, "Transfer-Encoding: chunked", body=body)).status == 400


def test_heads_over_their_bounds_are_414_and_431(running: Bench, path: str) -> None:
    cases = (
        (post(f"{path}?{'a' * 9000}"), 414),
        (post(path, "X-Long: " + "a" * 65536), 431),
        (post(path, *(f"X-{n}: a" for n in range(101))), 431),
        (post(path, *(f"X-{n}: {'a' * 4000}" for n in range(16))), 431),
        (b"POST / HTTP/1.1\r\n" + b"X-A: bcd\r\n" * 8000, 431),
        (b"A" * 70_000, 414),
    )
    for sent, status in cases:
        answered = said(running.port, sent)
        assert answered.status == status, (status, answered.received[:200])
        assert b"X-OpenFaaS-Internal: gateway" in answered.received
    assert said(running.port, post(path, "X-A: " + "a" * 8000, "Connection: close")).status == 200


def test_what_an_error_quotes_cannot_write_to_a_terminal(running: Bench) -> None:
    answered = said(running.port, b"GET /\x1b[31mred HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answered.status == 400
    assert b"\x1b" not in answered.received
    answered = said(running.port, b"GET / HTTP/1.1\r\nHost: x\r\nbad\x1b[31m: x\r\n\r\n")
    assert answered.status == 400
    assert b"\x1b" not in answered.received


def test_pipelined_requests_are_answered_in_order(running: Bench, path: str) -> None:
    one = post(path, "Content-Length: 3", body=b"one")
    two = post(path, "Content-Length: 3", "Connection: close", body=b"two")
    answered = said(running.port, one + two)
    assert answered.statuses == [200, 200]
    assert answered.received.index(b"one") < answered.received.index(b"two")


def test_a_body_may_take_longer_the_more_of_it_came() -> None:
    assert receive_deadline(5.0, 0) == 15.0
    assert receive_deadline(5.0, 60 * RECEIVE_BYTES_PER_SECOND) == 75.0


def test_a_client_that_reads_nothing_stops_the_instance_and_holds_little(
    running: Bench,
) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            yield b"data: " + b"x" * 65536 + b"\n\n"
            sent += 65536
            await asyncio.sleep(0)

    function = running.function()
    worker = running.worker(lambda request: stream(request, endless(), "text/event-stream"))
    running.instance(function, worker.address)
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        reader.connect(("127.0.0.1", running.port))
        reader.sendall(f"GET /function/{function.name} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        settled, before = 0, -1
        while sent != before or not sent:
            before = sent
            time.sleep(0.5)
            settled += 1
            assert settled < 40
        assert sent < 32 * 1024 * 1024
    assert worker.cancelled.wait(1.0)


def test_a_client_that_leaves_frees_its_work_within_a_second(running: Bench) -> None:
    entered = threading.Event()

    async def slow(request: server.Request) -> server.Response:
        entered.set()
        await asyncio.sleep(60)
        return server.Response()

    annotations = {"stoker/concurrency-limit": "1"}
    function = running.function(annotations=annotations)
    worker = running.worker(slow)
    running.instance(function, worker.address)
    with Raw(running.port) as leaving:
        leaving.send(post(f"/function/{function.name}", "Content-Length: 1", body=b"x"))
        assert entered.wait(5)
    assert worker.cancelled.wait(1.0)
