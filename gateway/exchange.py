"""One HTTP exchange as the gateway's own code sees it; the only place that speaks ASGI messages."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import orjson

from stoker.placement.errors import (
    MethodNotAllowed,
    PayloadTooLarge,
    StokerError,
    Unauthorized,
    Unavailable,
)

Headers = list[tuple[bytes, bytes]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

COMPONENT = (b"x-openfaas-internal", b"gateway")
# After a refusal the client may still be sending; closing under it would lose it the answer.
DISCARD_SECONDS = 5.0
# Whether the client is still there is asked of requests that take longer than most.
WATCH_AFTER_SECONDS = 0.02
# Of a body that does not say its length: it is held before it is known to be too large.
UNKNOWN_LENGTH_BYTES_MAXIMUM = 8 * 1024 * 1024
PIECE_BYTES = 16 * 1024
# The body that clients of OpenFaaS know.
_UNAUTHORIZED = b"invalid credentials"


class ClientGone(Exception):
    """The client closed its connection; there is nobody to answer."""


class BufferBudget:
    """Bytes of request bodies that all requests together may hold in memory."""

    def __init__(self, bytes_maximum: int) -> None:
        self._free_bytes = bytes_maximum

    def take(self, byte_count: int) -> None:
        if byte_count > self._free_bytes:
            raise Unavailable(
                "The gateway holds as many bytes of waiting requests as it may.",
                "Send the request again later.",
                retry_after_seconds=5,
            )
        self._free_bytes -= byte_count

    def give_back(self, byte_count: int) -> None:
        self._free_bytes += byte_count


class Request:
    """The head of a request, and its body once it is read."""

    def __init__(
        self, scope: MutableMapping[str, Any], receive: Receive, budget: BufferBudget
    ) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
        self.path = raw_path.partition(b"?")[0].decode("latin-1")
        self.query = scope["query_string"].decode("latin-1")
        self.headers: Headers = scope["headers"]
        self.scheme: str = scope.get("scheme", "http")
        client = scope.get("client")
        self.peer: str = client[0] if client else ""
        self.body = b""
        self._receive = receive
        self._budget = budget
        self._held_bytes = 0
        self._complete = False

    def header(self, name: bytes) -> str:
        """The value of a header by its small name; the first one, or nothing."""
        for key, value in self.headers:
            if key == name:
                return value.decode("latin-1")
        return ""

    async def read(self, bytes_maximum: int) -> bytes:
        """The whole body; PayloadTooLarge as soon as it is known to be over `bytes_maximum`."""
        if self._complete:
            return self.body
        announced = self.header(b"content-length")
        if not announced:
            bytes_maximum = min(bytes_maximum, UNKNOWN_LENGTH_BYTES_MAXIMUM)
        elif announced.isdigit() and int(announced) > bytes_maximum:
            raise _too_large(bytes_maximum, announced)
        pieces = _Pieces()
        while not self._complete:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part: bytes = message.get("body", b"")
            if self._held_bytes + len(part) > bytes_maximum:
                raise _too_large(bytes_maximum, "more")
            self._budget.take(len(part))
            self._held_bytes += len(part)
            pieces.add(part)
            self._complete = not message.get("more_body", False)
        self.body = pieces.whole()
        return self.body

    def release(self) -> None:
        self._budget.give_back(self._held_bytes)
        self._held_bytes = 0

    async def discard(self) -> None:
        """Let go by what the client still sends of a body that nobody wants."""
        if self._complete:
            return
        try:
            async with asyncio.timeout(DISCARD_SECONDS):
                while not self._complete:
                    message = await self._receive()
                    gone = message["type"] == "http.disconnect"
                    self._complete = gone or not message.get("more_body", False)
        except TimeoutError:
            self._complete = True

    @asynccontextmanager
    async def while_connected(self) -> AsyncIterator[None]:
        """Cancel what runs inside as soon as the client is gone, and raise ClientGone instead.

        The body must have been read.
        """
        task = asyncio.current_task()
        assert task is not None
        left = False

        async def watch() -> None:
            nonlocal left
            while (await self._receive())["type"] != "http.disconnect":
                pass
            left = True
            task.cancel()

        watcher: asyncio.Task[None] | None = None

        def begin() -> None:
            nonlocal watcher
            watcher = asyncio.create_task(watch())

        beginning = asyncio.get_running_loop().call_later(WATCH_AFTER_SECONDS, begin)
        try:
            yield
        except asyncio.CancelledError:
            if not left:
                raise
            task.uncancel()
            raise ClientGone from None
        finally:
            beginning.cancel()
            if watcher is not None:
                watcher.cancel()


class _Pieces:
    """What came of a body. Crumbs are put together: each object costs more than its bytes."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._crumbs = bytearray()

    def add(self, part: bytes) -> None:
        if len(part) < PIECE_BYTES:
            self._crumbs += part
            if len(self._crumbs) < PIECE_BYTES:
                return
        self._settle()
        if len(part) >= PIECE_BYTES:
            self._parts.append(part)

    def whole(self) -> bytes:
        self._settle()
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def _settle(self) -> None:
        if self._crumbs:
            self._parts.append(bytes(self._crumbs))
            self._crumbs.clear()


class Reply:
    """Sends one response. `status` is 0 until its head was sent."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.finished = False

    async def start(self, status: int, headers: Headers) -> None:
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, chunk: bytes) -> None:
        if chunk:
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def finish(self, chunk: bytes = b"") -> None:
        """End cleanly. A reply that is never finished reaches the client as a broken body."""
        self.finished = True
        await self._send({"type": "http.response.body", "body": chunk, "more_body": False})

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        length = (b"content-length", str(len(body)).encode())
        await self.start(status, [*headers, length])
        await self.finish(body)


def error_answer(error: StokerError, accept: str) -> tuple[int, Headers, bytes]:
    """Status, headers and body for a platform error: a sentence, or JSON if that is accepted."""
    if isinstance(error, Unauthorized):
        realm = (b"www-authenticate", b'Basic realm="Restricted"')
        return error.status, [(b"content-type", b"text/plain"), COMPONENT, realm], _UNAUTHORIZED
    if "application/json" in accept:
        kind, body = b"application/json", orjson.dumps({"error": error.to_wire()})
    else:
        kind, body = b"text/plain; charset=utf-8", f"{error}\n".encode()
    return error.status, [(b"content-type", kind), COMPONENT, *error_headers(error)], body


def check_method(request: Request, *allowed: str) -> None:
    """MethodNotAllowed for another one."""
    if request.method not in allowed:
        raise MethodNotAllowed(
            f"Expected {' or '.join(allowed)} at {request.path:.80}, found {request.method}.",
            f"Use {allowed[0]}.",
            allow=list(allowed),
        )


def error_headers(error: StokerError) -> Headers:
    """Allow, or Retry-After in whole seconds, at most 120: some clients give up over that."""
    if isinstance(error, MethodNotAllowed):
        return [(b"allow", ", ".join(error.details["allow"]).encode())]
    if error.retry_after_seconds is None:
        return []
    seconds = min(120, max(1, math.ceil(error.retry_after_seconds)))
    return [(b"retry-after", str(seconds).encode())]


def _too_large(bytes_maximum: int, found: str) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"Expected a body of at most {bytes_maximum} bytes, found {found}.",
        "Send less, state its length, or put the data where the function can fetch it.",
    )
