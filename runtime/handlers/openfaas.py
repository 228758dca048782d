"""OpenFaaS functions: `handle(event, context)` and `handle(req)`, as its templates call them.

`handle` may be a function, a coroutine function, a generator or an asynchronous generator. It
returns a body (str, bytes, a generator of them, or anything JSON can say), or a tuple
(body[, status][, headers]). With two parameters, as in python3-http, a dict with statusCode, body
and headers is such an answer too. With one, as in python3-flask and python3, it gets the body as
text (bytes if RAW_BODY is true), and a dict is JSON.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import orjson

from stoker.placement.cloud_event import CloudEvent
from stoker.placement.errors import StartFailed
from stoker.placement.function_code import entry_file
from stoker.runtime.handlers.calls import Steps, contained, thread_pool
from stoker.runtime.handlers.code import import_file, listing
from stoker.runtime.handlers.context_model import ContextModel
from stoker.runtime.handlers.http import Headers, Request, Response, checked_headers
from stoker.runtime.handlers.wsgi import environ_of


class EventHeaders(dict[str, str]):
    """Headers by name in any case."""

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and super().__contains__(name.lower())

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)


@dataclass(frozen=True, slots=True)
class Event:
    """`query` has the first value of each name; `path` starts with a slash.

    `cloud_event` is set if the call carries one: `body` is its data.
    """

    body: bytes
    headers: EventHeaders
    method: str
    query: Mapping[str, str]
    path: str
    cloud_event: CloudEvent | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """`hostname` is the instance's id, `function` its function's name, `model` its stoker/model."""

    hostname: str
    function: str
    namespace: str
    environment: Mapping[str, str] = field(default_factory=dict)
    model: ContextModel | None = None


def load_handle(code_dir: Path) -> Callable[..., Any]:
    """`handle` from the handler.py in `code_dir` or its `function` folder; StartFailed if none."""
    entry = entry_file("openfaas", lambda name: (code_dir / name).is_file())
    if entry is None:
        raise StartFailed(
            f"Expected a handler.py in the function's code, found {listing(code_dir)}.",
            "Put handle(event, context) into handler.py.",
        )
    module = import_file(code_dir / entry, "handler")
    handle = getattr(module, "handle", None)
    if not callable(handle):
        found = ", ".join(n for n, v in vars(module).items() if inspect.isfunction(v)) or "none"
        raise StartFailed(
            f"Expected a function handle(event, context) in handler.py, found functions: {found}.",
            "Define handle(event, context).",
        )
    if not _parameter_count(handle):
        raise StartFailed(
            "Expected handle(event, context) or handle(req), "
            f"found handle{inspect.signature(handle)}.",
            "Use the signature of the python3-http template.",
        )
    return handle  # type: ignore[no-any-return]


def _parameter_count(handle: Callable[..., Any]) -> int:
    """2 or 1: with how many arguments `handle` can be called; 0 if with neither."""
    signature = inspect.signature(handle)
    for count in (2, 1):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return count
    return 0


class FunctionHandler:
    """Calls `handle` for each request; a synchronous one in a pool of `concurrency` threads."""

    def __init__(self, handle: Callable[..., Any], context: Context, concurrency: int) -> None:
        self._handle = handle
        self._takes_body = _parameter_count(handle) == 1
        self._raw_body = os.environ.get("RAW_BODY", "").lower() == "true"
        self._context = context
        self._threads = thread_pool(concurrency)
        # Both Flask templates call `handle` inside a request of their app. Only code that has
        # imported Flask can tell.
        flask: Any = sys.modules.get("flask")
        self._flask = None if flask is None else flask.Flask("function")

    async def __call__(self, request: Request) -> Response:
        steps = Steps(self._threads)
        arguments = self._arguments(request)
        with contained():
            if inspect.iscoroutinefunction(self._handle):
                result = await self._handle(*arguments)
            elif inspect.isasyncgenfunction(self._handle):
                result = self._handle(*arguments)
            else:
                result = await steps.run(self._call, request, arguments)
                if inspect.isawaitable(result):
                    result = await result
            status, headers, body = _parts(result, dict_is_answer=not self._takes_body)
            if isinstance(body, Iterator | AsyncIterable):
                return Response(status, headers, _pieces(body, steps))
            content_type, payload = _payload(body)
        if not any(name.lower() == "content-type" for name, _ in headers):
            headers += (("content-type", content_type),)
        return Response(status, headers, payload)

    def _call(self, request: Request, arguments: tuple[Any, ...]) -> Any:
        if self._flask is None:
            return self._handle(*arguments)
        with self._flask.request_context(environ_of(request)):
            return self._handle(*arguments)

    def _arguments(self, request: Request) -> tuple[Any, ...]:
        if not self._takes_body:
            return _event(request), self._context
        return (request.body if self._raw_body else request.body.decode(errors="replace"),)


async def _pieces(body: Any, steps: Steps) -> AsyncGenerator[bytes, None]:
    """The body as it comes; a failure before its first piece is still a status."""
    with contained():
        pieces = body
        if not isinstance(body, AsyncIterable):
            pieces = steps.iterate(body, getattr(body, "close", None))
        try:
            async for piece in pieces:
                yield _payload(piece)[1]
        finally:
            if inspect.isasyncgen(pieces):
                await pieces.aclose()


def _event(request: Request) -> Event:
    query = {name: values[0] for name, values in parse_qs(request.query, True).items()}
    headers = EventHeaders(request.public_headers)
    return Event(request.body, headers, request.method, query, request.path, request.event)


def _parts(result: Any, dict_is_answer: bool) -> tuple[int, Headers, Any]:
    """Status, headers and body of whatever `handle` returned."""
    if dict_is_answer and isinstance(result, dict) and ("statusCode" in result or "body" in result):
        status, body = result.get("statusCode", 200), result.get("body", b"")
        return _status(status), _headers(result.get("headers")), body
    if isinstance(result, tuple) and result:
        status, headers, body = _of_body(result[0])
        for part in result[1:]:
            if isinstance(part, int):
                status = part
            else:
                headers += _headers(part)
        return _status(status), headers, body
    return _of_body(result)


def _of_body(body: Any) -> tuple[int, Headers, Any]:
    if not callable(getattr(body, "iter_encoded", None)):
        return 200, (), body
    # A response of Flask; whole unless it is a stream.
    encoded = iter(body.iter_encoded()) if body.is_streamed else body.get_data()
    return body.status_code, _headers(body.headers), encoded


def _status(status: Any) -> int:
    if not isinstance(status, int) or not 200 <= status <= 599:
        raise ValueError(f"handle returned the status {status!r}")
    return status


def _headers(headers: Any) -> Headers:
    pairs = headers.items() if isinstance(headers, Mapping) else headers or ()
    return checked_headers((str(name), str(value)) for name, value in pairs)


def _payload(body: Any) -> tuple[str, bytes]:
    """Content type and bytes of a body."""
    if body is None:
        return "text/plain; charset=utf-8", b""
    if isinstance(body, str):
        return "text/plain; charset=utf-8", body.encode()
    if isinstance(body, bytes | bytearray | memoryview):
        return "application/octet-stream", bytes(body)
    return "application/json", orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
