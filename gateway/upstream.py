"""The way to instances: connections that are kept, and requests over them."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Iterable

import httptools

from stoker.gateway.connection import Connection
from stoker.gateway.exchange import Headers
from stoker.placement.errors import BadRequest, DeadlineExceeded, InstanceLost

CONNECT_SECONDS = 5.0
# Shorter than the instances keep an idle connection, so that it is we who close it.
IDLE_CONNECTION_SECONDS = 60.0
MISDIRECTED = 421

_NOT_IN_TARGET = re.compile(rb"[^\x21-\x7e]")
_BODILESS_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class NotTaken(Exception):
    """The instance did not take the request; nothing came of it."""


class _NoHead(Exception):
    """The time for it has passed."""


class Upstream:
    """To be made inside the event loop. `head_seconds` bounds the wait for a response's head,
    counted from the dispatch.
    """

    def __init__(self, head_seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._head_seconds = head_seconds
        # By address; those that were freed last are at the end.
        self._free: dict[str, deque[Connection]] = {}
        self._sweeping: asyncio.TimerHandle | None = None

    async def open(
        self, address: str, method: str, path: str, headers: Headers, body: bytes
    ) -> UpstreamResponse:
        """Send the request and wait for the head of the response.

        NotTaken, InstanceLost (`request_sent` tells whether all of it had left), DeadlineExceeded.
        """
        deadline = self._loop.time() + self._head_seconds
        head = request_head(address, method, path, headers, len(body))
        connection = self._take(address) or await self._connect(address)
        timer = self._loop.call_at(deadline, connection.fail, _NoHead())
        try:
            await connection.exchange(head, body, head_only=method == "HEAD")
        except _NoHead as error:
            raise DeadlineExceeded(
                f"The instance at {address} gave no response within {self._head_seconds:g} s.",
                "Ask for less in one request, or raise STOKER_RESPONSE_HEAD_SECONDS_MAXIMUM.",
            ) from error
        except (OSError, ValueError, httptools.HttpParserError) as error:
            raise _lost(address, error, connection.sent) from error
        except BaseException:
            connection.abort()
            raise
        finally:
            timer.cancel()
        response = UpstreamResponse(self, address, connection)
        if response.status == MISDIRECTED and response.header("x-stoker-misdirected"):
            connection.abort()
            raise NotTaken(f"another instance listens at {address}")
        return response

    def close(self) -> None:
        """Close what is kept; requests must have ended."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for kept in self._free.values():
            for connection in kept:
                connection.abort()
        self._free.clear()

    def give_back(self, address: str, connection: Connection) -> None:
        """Keep the connection for the next request, if it can serve one."""
        if not connection.release():
            connection.abort()
            return
        connection.free_since = self._loop.time()
        self._free.setdefault(address, deque()).append(connection)
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(IDLE_CONNECTION_SECONDS, self._sweep)

    def _take(self, address: str) -> Connection | None:
        kept = self._free.get(address)
        oldest = self._loop.time() - IDLE_CONNECTION_SECONDS
        while kept:
            connection = kept.pop()
            if not connection.is_closed and connection.free_since > oldest:
                return connection
            connection.abort()
        return None

    def _sweep(self) -> None:
        """Close what was idle for long enough. At most twice that long nothing is idle."""
        oldest = self._loop.time() - IDLE_CONNECTION_SECONDS
        for address, kept in list(self._free.items()):
            while kept and (kept[0].is_closed or kept[0].free_since <= oldest):
                kept.popleft().abort()
            if not kept:
                del self._free[address]
        self._sweeping = None
        if self._free:
            self._sweeping = self._loop.call_later(IDLE_CONNECTION_SECONDS, self._sweep)

    async def _connect(self, address: str) -> Connection:
        host, _, port = address.rpartition(":")
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, connection = await self._loop.create_connection(
                    lambda: Connection(self._loop), host.strip("[]"), int(port)
                )
        except (OSError, ValueError) as error:  # a TimeoutError is an OSError
            raise NotTaken(f"{error or type(error).__name__}") from error
        return connection


class UpstreamResponse:
    """A response whose body is still to come. To be closed. Header names are in small letters."""

    __slots__ = ("_address", "_connection", "_upstream", "raw_headers", "status")

    def __init__(self, upstream: Upstream, address: str, connection: Connection) -> None:
        self._upstream = upstream
        self._address = address
        self._connection: Connection | None = connection
        self.status = connection.status
        self.raw_headers = connection.headers

    def header(self, name: str) -> str:
        """The first header of that name, or nothing."""
        wanted = name.lower().encode()
        for key, value in self.raw_headers:
            if key == wanted:
                return value.decode("latin-1")
        return ""

    async def read_some(self) -> tuple[bytes, bool]:
        """What has come, as soon as something has, and whether that was all; InstanceLost."""
        assert self._connection is not None
        try:
            return await self._connection.read_some()
        except (OSError, ValueError, httptools.HttpParserError) as error:
            raise _lost(self._address, error, request_sent=True) from error

    async def read_at_most(self, bytes_maximum: int) -> bytes | None:
        """The whole body, or None if it is longer; InstanceLost."""
        parts: list[bytes] = []
        size, ended = 0, False
        while not ended:
            part, ended = await self.read_some()
            size += len(part)
            if size > bytes_maximum:
                return None
            parts.append(part)
        return b"".join(parts)

    def close(self) -> None:
        """Give the connection back, or end it if the response did not come to its end."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._upstream.give_back(self._address, connection)


def request_head(
    address: str, method: str, path: str, headers: Iterable[tuple[bytes, bytes]], body_bytes: int
) -> bytes:
    """The request line and the headers; BadRequest for one that would break the head."""
    target = _NOT_IN_TARGET.sub(lambda found: b"%%%02X" % found[0][0], path.encode("latin-1"))
    parts = [method.encode(), b" ", target, b" HTTP/1.1\r\n"]
    lines, has_host = 2, False
    for name, value in headers:
        parts += (name, b": ", value, b"\r\n")
        lines += 1
        has_host = has_host or name == b"host"
    if not has_host:
        parts += (b"host: ", address.encode(), b"\r\n")
        lines += 1
    if body_bytes or method not in _BODILESS_METHODS:
        parts.append(b"content-length: %d\r\n" % body_bytes)
        lines += 1
    parts.append(b"\r\n")
    head = b"".join(parts)
    if not head.count(b"\n") == head.count(b"\r") == lines:
        raise BadRequest("Expected headers without line ends, found one with.", "Leave it out.")
    return head


def _lost(address: str, error: Exception, request_sent: bool) -> InstanceLost:
    return InstanceLost(
        f"The instance at {address} was lost while it worked on the request "
        f"({error or type(error).__name__}).",
        "Send the request again if repeating it does no harm.",
        request_sent=request_sent,
    )
