"""The HTTP face of a worker: an ASGI application that needs no framework.

It is up before the function is: requests wait for `ready` and then take one of `concurrency`
slots; one too many is 429 with Retry-After. A client that leaves cancels what runs for it. The
answer's head carries Server-Timing with the seconds that this very request waited for fetch, load
and init, and its prefill.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import orjson

from stoker.placement.errors import (
    InstanceLost,
    PayloadTooLarge,
    StokerError,
    Unauthorized,
)
from stoker.runtime.admission import Admission
from stoker.runtime.handlers.http import Handler, Request, Response, json_response

BODY_BYTES_MAXIMUM = 64 << 20
LOAD_ERROR_SECONDS_MAXIMUM = 1.0
"""Between a layer that hears that its load has failed and everybody else."""
_READY_PATH = "/_/ready"
WATCHDOG_PATHS = ("/_/health", _READY_PATH)
_HOP_BY_HOP = frozenset({"connection", "content-length", "keep-alive", "transfer-encoding"})

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Ready:
    """A function that can be called since `at` (monotonic), while weights may still come.

    `bytes_at` is when the last of them arrived, or what their load failed with; None for weights
    that were in memory when the instance was ordered. `fetch_seconds` is what getting them from
    afar took. `start` is called in the event loop before the first request, `stop` after the last.
    While it does not accept calls, they are sent elsewhere.
    """

    handler: Handler
    at: float = 0.0
    bytes_at: Future[float] | None = None
    fetch_seconds: Callable[[], float] = lambda: 0.0
    start: Callable[[], Awaitable[None]] | None = None
    stop: Callable[[], Awaitable[None]] | None = None
    accepts: Callable[[], bool] = lambda: True

    def stages(self, since: float, prefill: tuple[float, float] | None) -> dict[str, float]:
        """How a request that came at `since` spent its time to the first token.

        `prefill` is when that began and ended, which says that all weights have been needed. The
        stages add up to the wait. What ran side by side counts for the bytes first.
        """
        bytes_at, arrival = 0.0, self.bytes_at
        if arrival is not None and arrival.done() and arrival.exception() is None:
            bytes_at = arrival.result()
        for_bytes = max(0.0, bytes_at - since)
        fetch = min(for_bytes, self.fetch_seconds())
        began, ended = prefill or (0.0, 0.0)
        return {
            "fetch": fetch,
            "load": for_bytes - fetch,
            "init": max(0.0, self.at - max(since, bytes_at)),
            "prefill": max(0.0, ended - max(began, bytes_at)),
        }

    async def cause_of(self, error: StokerError) -> StokerError:
        """What ended the load of the weights, if that is why a request failed."""
        if self.bytes_at is None or not isinstance(error, InstanceLost):
            return error
        waiting = asyncio.wrap_future(self.bytes_at)
        await asyncio.wait({waiting}, timeout=LOAD_ERROR_SECONDS_MAXIMUM)
        found = waiting.exception() if waiting.done() else None
        return found if isinstance(found, StokerError) else error


class WorkerApp:
    """Serves one function. `started_at` is when its instance was ordered (monotonic)."""

    def __init__(
        self,
        token: str,
        instance_id: str,
        ready: asyncio.Future[Ready],
        concurrency: int,
        started_at: float,
    ) -> None:
        self._token = token.encode()
        self._instance_id = instance_id.encode()
        self._ready = ready
        self._concurrency = concurrency
        self._admission = Admission(concurrency)
        self._ordered_at = started_at

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        since = max(self._ordered_at, time.monotonic() - _seconds_under_way(headers))
        try:
            if headers.get(b"x-stoker-instance", self._instance_id) != self._instance_id:
                await _send_response(send, _MISDIRECTED)
                return
            self._authorise(headers)
            if scope["path"] in WATCHDOG_PATHS:
                await _send_response(send, self._watchdog_answer(scope["path"]))
                return
            request = await _read(scope, receive)
        except StokerError as error:
            await _send_response(send, error_response(error))
            return
        if request is None:
            return
        answer = asyncio.ensure_future(self._answer(request, since, send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            answer.cancel()
        await asyncio.wait({answer})
        if not answer.cancelled():
            answer.result()

    async def _answer(self, request: Request, since: float, send: Send) -> None:
        try:
            if request.header("x-stoker-probe"):
                ready = await asyncio.shield(self._ready)
                await _send_response(send, await ready.handler(request))
                return
            with self._admission.place():
                ready = await asyncio.shield(self._ready)
                if not ready.accepts():
                    await _send_response(send, _MISDIRECTED)
                    return
                async with self._admission.slot():
                    try:
                        response = await ready.handler(request)
                    except StokerError as error:
                        raise await ready.cause_of(error) from error
                    # The slot is held until the last byte: a stream is a request in flight.
                    stages = ready.stages(since, response.prefill)
                    await _send_response(send, response, stages)
        except StokerError as error:
            await _send_response(send, error_response(error))

    def _watchdog_answer(self, path: str) -> Response:
        """What OpenFaaS' watchdog says of itself: whether it works, and takes one more call."""
        works = self._ready.done() and not self._ready.exception()
        if not works or (path == _READY_PATH and not self._ready.result().accepts()):
            return Response(503)
        full = self._admission.inside >= self._concurrency
        return Response(429 if path == _READY_PATH and full else 200)

    def _authorise(self, headers: Mapping[bytes, bytes]) -> None:
        given = headers.get(b"x-stoker-token", b"")
        if not hmac.compare_digest(given, self._token):
            raise Unauthorized(
                "Expected the instance's token in X-Stoker-Token, found another or none.",
                "Call the function through the gateway.",
            )


def _seconds_under_way(headers: Mapping[bytes, bytes]) -> float:
    """How long ago the gateway sent the request: it may have waited in the socket's backlog."""
    sent = headers.get(b"x-stoker-dispatched", b"")
    return max(0.0, time.time() - int(sent) / 1e9) if sent.isdigit() else 0.0


# An address may pass from one instance to the next; the gateway then asks placement again.
_MISDIRECTED = Response(421, (("X-Stoker-Misdirected", "1"),), b"")


async def _read(scope: Mapping[str, Any], receive: Receive) -> Request | None:
    """The request with its body; None when the client left before its end."""
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(part)
        if size > BODY_BYTES_MAXIMUM:
            raise PayloadTooLarge(
                f"Expected a body of at most {BODY_BYTES_MAXIMUM} bytes, found more.",
                "Send less, or put the data into object storage.",
            )
        parts.append(part)
    return Request(
        method=scope["method"],
        path=scope["path"],
        query=scope["query_string"].decode("latin-1"),
        headers=tuple((k.decode("latin-1"), v.decode("latin-1")) for k, v in scope["headers"]),
        body=b"".join(parts),
    )


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_response(
    send: Send, response: Response, stages: Mapping[str, float] | None = None
) -> None:
    """Sends `response`; its head leaves with the first piece of the body."""
    body = response.body
    if isinstance(body, bytes):
        await send(_head(response, stages, len(body)))
        await send({"type": "http.response.body", "body": body})
        return
    async with aclosing(body):
        head: Message | None = _head(response, stages, None)
        try:
            async for piece in body:
                if head is not None:
                    await send(head)
                    head = None
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except StokerError:
            if head is not None:
                raise
            # The status has gone. Without the body's end the client sees a broken answer; with
            # one it would take it for whole.
            raise _Broken from None
        if head is not None:
            await send(head)
        await send({"type": "http.response.body"})


class _Broken(Exception):
    """Makes the server close the connection in the middle of a body."""


def _head(response: Response, stages: Mapping[str, float] | None, length: int | None) -> Message:
    headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1", "replace"))
        for name, value in response.headers
        if name.lower() not in _HOP_BY_HOP
    ]
    if stages is not None:
        timing = ", ".join(f"{name};dur={1000 * value:.1f}" for name, value in stages.items())
        headers.append((b"server-timing", timing.encode()))
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    return {"type": "http.response.start", "status": response.status, "headers": headers}


def error_response(error: StokerError) -> Response:
    """The error as internal HTTP carries it, with Retry-After where one is known."""
    response = json_response(orjson.dumps({"error": error.to_wire()}), error.status)
    if error.retry_after_seconds is None:
        return response
    retry = (("retry-after", str(math.ceil(error.retry_after_seconds))),)
    return Response(response.status, response.headers + retry, response.body)


def guarded(handler: Handler) -> Handler:
    """`handler`, with any error of our own making logged and answered as `internal`."""

    async def call(request: Request) -> Response:
        try:
            return await handler(request)
        except StokerError:
            raise
        except Exception as error:
            traceback.print_exc()
            raise StokerError(
                f"Expected the handler to answer, found {type(error).__name__}.",
                "The function's log has the traceback.",
            ) from error

    return call
