"""What instances may do to a connection, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from stoker.gateway.connection import READ_BYTES, SILENT_BYTES_MAXIMUM
from stoker.gateway.upstream import NotTaken, Upstream, request_head
from stoker.placement.errors import BadRequest, DeadlineExceeded, InstanceLost

_T = TypeVar("_T")
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def with_instance(script: Script, use: Callable[[Upstream, str], Awaitable[_T]]) -> _T:
    """What `use` returns, beside an instance whose connections each run `script`."""

    async def run() -> _T:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await script(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        upstream = Upstream(head_seconds=0.5)
        try:
            async with asyncio.timeout(10):
                port = server.sockets[0].getsockname()[1]
                return await use(upstream, f"127.0.0.1:{port}")
        finally:
            upstream.close()
            server.close()

    return asyncio.run(run())


def says(*answers: bytes) -> Script:
    """Answers the requests of one connection in turn, then closes it."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()

    return script


async def ask(upstream: Upstream, address: str, method: str = "GET") -> tuple[int, bytes]:
    response = await upstream.open(address, method, "/", [(b"host", b"x")], b"")
    try:
        body = await response.read_at_most(1 << 24)
    finally:
        response.close()
    assert body is not None
    return response.status, body


WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.mark.parametrize(
    ("answer", "method", "expected"),
    [
        (WHOLE, "GET", (200, b"ok")),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", "HEAD", (200, b"")),
        (b"HTTP/1.1 204 No\r\n\r\n", "GET", (204, b"")),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil it closes", "GET", (200, b"until it closes")),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE, "POST", (200, b"ok")),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n",
            "GET",
            (200, b"ab"),
        ),
    ],
)
def test_a_response_ends_where_its_framing_says(
    answer: bytes, method: str, expected: tuple[int, bytes]
) -> None:
    assert with_instance(says(answer), lambda u, a: ask(u, a, method)) == expected


def test_a_connection_serves_one_request_after_the_other() -> None:
    connections = 0

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await says(WHOLE, WHOLE, WHOLE)(reader, writer)

    async def thrice(upstream: Upstream, address: str) -> list[bytes]:
        return [(await ask(upstream, address))[1] for _ in range(3)]

    assert with_instance(count, thrice) == [b"ok"] * 3
    assert connections == 1


@pytest.mark.parametrize(
    "first",
    [
        WHOLE + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
    ],
)
def test_nobody_gets_what_followed_the_answer_to_another_request(first: bytes) -> None:
    async def twice(upstream: Upstream, address: str) -> list[bytes]:
        return [(await ask(upstream, address))[1] for _ in range(2)]

    assert with_instance(says(first, WHOLE), twice) == [b"ok"] * 2


def test_bytes_that_nobody_asked_for_close_the_connection() -> None:
    async def chatty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await says(WHOLE)(reader, writer)
        await asyncio.sleep(0.05)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
        await reader.read()

    async def later(upstream: Upstream, address: str) -> list[bytes]:
        first = await ask(upstream, address)
        await asyncio.sleep(0.1)
        return [first[1], (await ask(upstream, address))[1]]

    assert with_instance(chatty, later) == [b"ok", b"ok"]


@pytest.mark.parametrize(
    "nonsense",
    [
        b"not HTTP at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * (SILENT_BYTES_MAXIMUM + 1),
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok",
        b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"",
    ],
)
def test_what_is_no_whole_response_is_a_lost_instance(nonsense: bytes) -> None:
    with pytest.raises(InstanceLost) as raised:
        with_instance(says(nonsense), ask)
    assert raised.value.details["request_sent"] is True


def test_endless_trailers_are_cut() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: ")
        while True:
            writer.write(b"a" * 65536)
            await writer.drain()

    with pytest.raises(InstanceLost, match="bytes of headers"):
        with_instance(endless, ask)


def test_an_instance_that_says_nothing_is_given_up_in_time() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        await reader.read()

    with pytest.raises(DeadlineExceeded, match=r"within 0\.5 s"):
        with_instance(silent, ask)


def test_where_nobody_listens_the_request_was_not_taken() -> None:
    async def nobody(upstream: Upstream, address: str) -> None:
        await ask(upstream, "127.0.0.1:1")

    with pytest.raises(NotTaken):
        with_instance(says(), nobody)


def test_an_answer_before_the_end_of_a_large_body_is_passed_on() -> None:
    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.3)

    async def send(upstream: Upstream, address: str) -> int:
        response = await upstream.open(address, "POST", "/", [], b"x" * (64 << 20))
        response.close()
        return response.status

    assert with_instance(early, send) == 413


def test_a_large_body_arrives_whole_both_ways() -> None:
    body = bytes(range(256)) * (16 * READ_BYTES // 256)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        received = await reader.readexactly(len(body))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + received)
        await writer.drain()

    async def send(upstream: Upstream, address: str) -> bytes | None:
        response = await upstream.open(address, "POST", "/", [], body)
        await asyncio.sleep(0.1)
        received = await response.read_at_most(len(body))
        response.close()
        return received

    assert with_instance(echo, send) == body


def test_a_head_has_a_host_and_a_length_and_one_line_each() -> None:
    head = request_head("h:1", "POST", "/a b\xe9?c=%20", [(b"x-a", b"1")], 0)
    assert head == (
        b"POST /a%20b%E9?c=%20 HTTP/1.1\r\nx-a: 1\r\nhost: h:1\r\ncontent-length: 0\r\n\r\n"
    )
    with pytest.raises(BadRequest, match="without line ends"):
        request_head("h:1", "GET", "/", [(b"x-a", b"1\r\nx-stoker-token: forged")], 0)
