"""gunicorn's HTTP/1 connection, with the bounds that it lacks.

    accepted ──> head ──> body ──> response ──> next head …
    └─ 10 s, and a second more for every 8 KiB ─┘   └─ at most 30 s without the client reading

What gunicorn does itself: 414 for a long request line, 431 for a long or the 101st field, 400 for
two lengths or a length beside chunks, 5 s for an idle connection. What is added: a deadline for
the head and the body (408), a bound on the whole head (431), an end for clients that do not read,
a bound on connections, and 501 for a body that is compressed in transfer.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any

from gunicorn.asgi.parser import LimitRequestHeaders, UnsupportedTransferCoding
from gunicorn.asgi.protocol import ASGIProtocol

HEAD_BYTES_MAXIMUM = 32 * 1024
RECEIVE_SECONDS = 10.0
RECEIVE_BYTES_PER_SECOND = 8 * 1024
# A buffer that stays full so long, or what is left of an answer once the connection is closed.
SEND_SECONDS = 30.0
CONNECTIONS_MAXIMUM = 16_384


def receive_deadline(begun_at: float, received_bytes: int) -> float:
    """When a request that began then and of which so much came must be whole."""
    return begun_at + RECEIVE_SECONDS + received_bytes / RECEIVE_BYTES_PER_SECOND


def connections_maximum() -> int:
    """How many clients may be connected: each of them may need a second descriptor."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(64, min(CONNECTIONS_MAXIMUM, (descriptors - 128) // 2))


class BoundedConnection(ASGIProtocol):  # type: ignore[misc]
    """One client's connection."""

    def __init__(self, worker: Any) -> None:
        super().__init__(worker)
        self._loop: asyncio.AbstractEventLoop = worker.loop
        self._begun_at: float | None = None
        self._received_bytes = 0
        self._feeding_bytes = 0
        self._answering = False
        self._receive_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if self.worker.nr_conns > self.cfg.worker_connections:
            transport.abort()
            return
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._receive_timer, self._send_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        if self.worker.emptied is not None and not self.worker.nr_conns:
            self.worker.emptied.set()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._abort_later()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._send_timer is not None and not self._closed:
            self._send_timer.cancel()
            self._send_timer = None

    def _begin(self) -> None:
        self._answering = False
        self._begun_at = self._loop.time()
        self._received_bytes = 0
        if self._receive_timer is None:
            self._receive_timer = self._loop.call_later(RECEIVE_SECONDS, self._look)

    def _look(self) -> None:
        """Cut a client that sends its request too slowly."""
        self._receive_timer = None
        if self._begun_at is None or self._closed:
            return
        deadline = receive_deadline(self._begun_at, self._received_bytes)
        if self._loop.time() < deadline:
            self._receive_timer = self._loop.call_at(deadline, self._look)
            return
        if self._received_bytes and not self._answering:
            self._send_error_response(408, "The request did not come in time.")
        self._close_transport()
        self._request_ready.set()
        if self._body_receiver is not None:
            self._body_receiver.signal_disconnect()

    def _feed_callback_parser(self, data: bytes) -> bool:
        self._feeding_bytes = len(data)
        going_on: bool = super()._feed_callback_parser(data)
        if not going_on or self._callback_parser is None or self._callback_parser.is_complete:
            return going_on
        if self._begun_at is None:
            self._begin()
        self._received_bytes += len(data)
        if self._current_request is None and self._received_bytes > HEAD_BYTES_MAXIMUM:
            self._send_error_response(431, "The head of the request is too long.")
            self._close_transport()
            return False
        return going_on

    def _on_headers_complete(self) -> Any:
        parser = self._callback_parser
        # Most heads come in one piece with no body: then there is nothing to add up.
        if self._received_bytes + self._feeding_bytes > HEAD_BYTES_MAXIMUM:
            size = sum(len(name) + len(value) + 4 for name, value in parser.headers)
            if size > HEAD_BYTES_MAXIMUM:
                raise LimitRequestHeaders("The head of the request is too long.")
        if parser.is_chunked and not _plainly_chunked(parser.headers):
            raise UnsupportedTransferCoding("A body may be chunked, and nothing else beside.")
        return super()._on_headers_complete()

    def _on_message_complete(self) -> None:
        super()._on_message_complete()
        self._begun_at = None
        if self._receive_timer is not None:
            self._receive_timer.cancel()
            self._receive_timer = None

    def _will_close(self, request: Any, response_requires_close: bool) -> bool:
        requires_close = response_requires_close or self.worker.leaving
        return bool(super()._will_close(request, requires_close))

    def _send_response_start(self, *given: Any, **named: Any) -> None:
        self._answering = True
        super()._send_response_start(*given, **named)

    def _keepalive_timeout(self) -> None:
        # A request that began counts by its own deadline.
        if self._begun_at is None:
            super()._keepalive_timeout()

    def _send_error_response(
        self, status: int, message: str, extra_headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        # What is wrong may be quoted from the request, and ends in a terminal or a log.
        shown = message.encode("unicode_escape").decode("ascii")[:300] + "\n"
        super()._send_error_response(
            status, shown, (*extra_headers, ("X-OpenFaaS-Internal", "gateway"))
        )

    def _close_transport(self) -> None:
        super()._close_transport()
        if not self._conn_lost_handled:
            self._abort_later()

    def _abort_later(self) -> None:
        if self._send_timer is None:
            self._send_timer = self._loop.call_later(SEND_SECONDS, self.transport.abort)


def _plainly_chunked(headers: list[tuple[bytes, bytes]]) -> bool:
    codings = [value.lower() for name, value in headers if name.lower() == b"transfer-encoding"]
    return codings == [b"chunked"]
