"""One HTTP/1.1 connection to an instance: one request at a time, and kept for the next one.

    free ── exchange ──> head ──> body, body, … ──> ended ──> free again, or closed

The parser's callbacks fill the fields; one future wakes the one task that waits for them. What an
instance sends without being asked closes the connection, so that no request ever gets it.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import httptools

WRITE_BYTES = 256 * 1024
READ_BYTES = 256 * 1024
# Of a head, of trailers, of chunk extensions: all that comes without a byte of body.
SILENT_BYTES_MAXIMUM = 128 * 1024
# A machine that vanished says nothing: probes find it after 5 + 3 * 5 seconds.
PROBE_SECONDS = 5
PROBES = 3

_BODILESS = frozenset({204, 304})


def probe(own: socket.socket) -> None:
    """Have the kernel find out when the other machine has vanished."""
    own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    own.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_SECONDS)
    own.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_SECONDS)
    own.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)


class Connection(asyncio.Protocol):
    """`status` is 0 until the head of the response is there; header names are in small letters.

    `sent` says that the whole request has left this process, `ended` that the whole response came.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._parser = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self._waiter: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self._writable = True
        self._reading = True
        self._busy = False
        self.is_closed = False
        self.free_since = 0.0
        self._reset(head_only=False)

    def _reset(self, *, head_only: bool) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.sent = False
        self.ended = False
        self._head_only = head_only
        self._chunks: list[bytes] = []
        self._buffered_bytes = 0
        self._silent_bytes = 0
        self._is_interim = False
        self._ends_by_close = False
        self._keeps_alive = False

    # What the gateway does with it.

    async def exchange(self, head: bytes, body: bytes, *, head_only: bool) -> None:
        """Send a request, and wait for the head of its response; raises what broke it.

        With `head_only` the response has no body, whatever its headers say.
        """
        self._reset(head_only=head_only)
        self._busy = True
        if len(body) <= WRITE_BYTES:
            self._transport.write(head + body if body else head)
            self.sent = True
        else:
            self._transport.write(head)
            await self._send(memoryview(body))
        while not self.status:
            self._check()
            await self._wait()

    async def read_some(self) -> tuple[bytes, bool]:
        """What has come, as soon as something has, and whether that was all; raises what broke it.

        What came before that is given first.
        """
        while not self._chunks and not self.ended:
            self._check()
            await self._wait()
        chunks = self._chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self._chunks, self._buffered_bytes = [], 0
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()
        return data, self.ended

    def fail(self, error: Exception) -> None:
        """Close the connection; who waits for it gets the error, unless the response has ended."""
        if self._failure is None:
            self._failure = error
        self.abort()
        self._wake()

    def abort(self) -> None:
        self.is_closed = True
        self._transport.abort()

    def release(self) -> bool:
        """Whether it may serve another request; call it when the response is done with."""
        self._busy = False
        kept = self.ended and self.sent and self._keeps_alive and self._reading
        return kept and not self.is_closed

    async def _send(self, body: memoryview) -> None:
        for begin in range(0, len(body), WRITE_BYTES):
            while not self._writable and not self.status:
                self._check()
                await self._wait()
            self._check()
            if self.status:
                return  # it answers without the rest
            self._transport.write(body[begin : begin + WRITE_BYTES])
        self.sent = True

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # What the transport says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        probe(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        if not self._busy:
            self.abort()
            return
        self._silent_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.fail(ConnectionError("it switched protocols"))
            return
        except httptools.HttpParserError as error:
            self.fail(error)
            return
        if self._silent_bytes > SILENT_BYTES_MAXIMUM:
            self.fail(ValueError(f"more than {SILENT_BYTES_MAXIMUM} bytes of headers"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        if self.status and self._ends_by_close and exc is None and self._failure is None:
            self.ended = True
        elif self._failure is None:
            self._failure = exc or ConnectionResetError("it closed the connection")
        self._wake()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._wake()

    # What the parser finds.

    def on_message_begin(self) -> None:
        if self.status:
            # A second response to one request: nobody may take it for the answer to the next.
            self.is_closed = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.status:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self.status:
            return
        if status < 200:
            self._is_interim, self.headers = True, []
            return
        self.status, self._silent_bytes = status, 0
        self._ends_by_close = status not in _BODILESS and not _is_framed(self.headers)
        if self._head_only:
            self.ended = True
        self._wake()

    def on_body(self, body: bytes) -> None:
        if self.ended:
            return
        self._silent_bytes = 0
        self._chunks.append(body)
        self._buffered_bytes += len(body)
        if self._buffered_bytes > READ_BYTES and self._reading:
            self._reading = False
            self._transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        if self._is_interim:
            self._is_interim = False
            return
        self.ended = True
        # After the head of an answer to HEAD the parser may still expect a body.
        self._keeps_alive = self._parser.should_keep_alive() and not self._head_only
        self._wake()


def _is_framed(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(
        name == b"content-length"
        or (name == b"transfer-encoding" and value.lower().endswith(b"chunked"))
        for name, value in headers
    )
