"""Custom functions: the user's `handle(event, context)`, as OpenFaaS' Python templates call it.

`handle` may be a function, a coroutine function, a generator or an asynchronous generator. It
returns a dict with statusCode, body and headers, a tuple (body[, status][, headers]), or a body
alone: str, bytes, a generator of them, or anything JSON can say.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import sys
import traceback
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs

import orjson

from stoker.placement.errors import FunctionError, StartFailed
from stoker.runtime.handlers.http import Headers, Request, Response

_END = object()


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
    """`query` has the first value of each name; `path` starts with a slash."""

    body: bytes
    headers: EventHeaders
    method: str
    query: Mapping[str, str]
    path: str


@dataclass(frozen=True, slots=True)
class Context:
    """`hostname` is the instance's id, `function` the function's name."""

    hostname: str
    function: str
    namespace: str
    environment: Mapping[str, str] = field(default_factory=dict)


def load_handle(code_dir: Path) -> Callable[[Event, Context], Any]:
    """`handle` from the handler.py in `code_dir` or its `function` folder; StartFailed if none."""
    folder = next(
        (d for d in (code_dir, code_dir / "function") if (d / "handler.py").is_file()), None
    )
    if folder is None:
        found = ", ".join(sorted(path.name for path in code_dir.iterdir())[:8]) or "nothing"
        raise StartFailed(
            f"Expected a handler.py in the function's code, found {found}.",
            "Put handle(event, context) into handler.py.",
        )
    module = _import(folder / "handler.py")
    handle = getattr(module, "handle", None)
    if not callable(handle):
        found = ", ".join(n for n, v in vars(module).items() if inspect.isfunction(v)) or "none"
        raise StartFailed(
            f"Expected a function handle(event, context) in handler.py, found functions: {found}.",
            "Define handle(event, context).",
        )
    parameters = inspect.signature(handle).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < 2 and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise StartFailed(
            f"Expected handle(event, context), found handle{inspect.signature(handle)}.",
            "Use the python3-http template's signature.",
        )
    return handle  # type: ignore[no-any-return]


def _import(path: Path) -> ModuleType:
    """Runs handler.py as the module `handler`; its folder is where it may import from."""
    sys.path[:0] = [str(path.parent), str(path.parent.parent)]
    spec = importlib.util.spec_from_file_location("handler", path)
    if spec is None or spec.loader is None:
        raise StartFailed(
            f"Expected {path.name} to be importable, found that it is not.",
            "Put handle(event, context) into handler.py.",
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules["handler"] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        raise StartFailed(
            f"Expected handler.py to be imported, found {type(error).__name__}: {error}.",
            "The function's log has the traceback.",
        ) from error
    return module


class FunctionHandler:
    """Calls `handle` for each request; a synchronous one in a pool of `concurrency` threads."""

    def __init__(
        self, handle: Callable[[Event, Context], Any], context: Context, concurrency: int
    ) -> None:
        self._handle = handle
        self._context = context
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="handle")

    async def __call__(self, request: Request) -> Response:
        event = _event(request)
        try:
            if inspect.iscoroutinefunction(self._handle):
                result = await self._handle(event, self._context)
            elif inspect.isasyncgenfunction(self._handle):
                result = self._handle(event, self._context)
            else:
                result = await self._in_thread(self._handle, event, self._context)
                if inspect.isawaitable(result):
                    result = await result
            return await self._response(result)
        except (Exception, SystemExit) as error:
            raise _failed(error) from error

    async def _in_thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, _quietly, call, *arguments)

    async def _response(self, result: Any) -> Response:
        status, headers, body = _parts(result)
        if isinstance(body, Iterator | AsyncIterable):
            pieces = self._pieces(body)
            # The first piece is drawn here, so that an error before it is still a status.
            first = await anext(pieces, None)
            return Response(status, headers, _prepend(first, pieces))
        content_type, payload = _payload(body)
        if not any(name.lower() == "content-type" for name, _ in headers):
            headers += (("content-type", content_type),)
        return Response(status, headers, payload)

    async def _pieces(self, body: Any) -> AsyncGenerator[bytes, None]:
        try:
            if isinstance(body, AsyncIterable):
                async for piece in body:
                    yield _payload(piece)[1]
                return
            while (piece := await self._in_thread(next, body, _END)) is not _END:
                yield _payload(piece)[1]
        finally:
            if inspect.isasyncgen(body):
                await body.aclose()
            elif inspect.isgenerator(body):
                await self._in_thread(body.close)


async def _prepend(
    first: bytes | None, rest: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes, None]:
    try:
        if first is not None:
            yield first
        async for piece in rest:
            yield piece
    except Exception as error:
        raise _failed(error) from error
    finally:
        await rest.aclose()


def _quietly(call: Callable[..., Any], *arguments: Any) -> Any:
    """The result; StopIteration cannot cross a future, so it becomes a RuntimeError."""
    try:
        return call(*arguments)
    except StopIteration as error:
        raise RuntimeError("handle raised StopIteration") from error


def _event(request: Request) -> Event:
    query = {name: values[0] for name, values in parse_qs(request.query, True).items()}
    headers = EventHeaders(
        (name, value) for name, value in request.headers if name != "x-stoker-token"
    )
    return Event(request.body, headers, request.method, query, request.path)


def _parts(result: Any) -> tuple[int, Headers, Any]:
    """Status, headers and body of whatever `handle` returned."""
    if isinstance(result, dict) and ("statusCode" in result or "body" in result):
        status, body = result.get("statusCode", 200), result.get("body", b"")
        return _status(status), _headers(result.get("headers")), body
    if isinstance(result, tuple):
        status, found = 200, None
        for part in result[1:]:
            if isinstance(part, int):
                status = part
            else:
                found = part
        return _status(status), _headers(found), result[0] if result else b""
    return 200, (), result


def _status(status: Any) -> int:
    if not isinstance(status, int) or not 200 <= status <= 599:
        raise ValueError(f"handle returned the status {status!r}")
    return status


def _headers(headers: Any) -> Headers:
    pairs = headers.items() if isinstance(headers, Mapping) else headers or ()
    checked = tuple((str(name), str(value)) for name, value in pairs)
    for name, value in checked:
        if not name.isascii() or any(c in name + value for c in "\r\n\0"):
            raise ValueError(f"handle returned the header {name!r}")
    return checked


def _payload(body: Any) -> tuple[str, bytes]:
    """Content type and bytes of a body."""
    if body is None:
        return "text/plain; charset=utf-8", b""
    if isinstance(body, str):
        return "text/plain; charset=utf-8", body.encode()
    if isinstance(body, bytes | bytearray | memoryview):
        return "application/octet-stream", bytes(body)
    return "application/json", orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def _failed(error: BaseException) -> FunctionError:
    """The error for the client, after the traceback went to the function's log."""
    traceback.print_exception(error, file=sys.stderr)
    return FunctionError(
        f"Expected the function to return a response, found {type(error).__name__}.",
        "The function's log has the traceback.",
    )
