"""Calls an ASGI application: the function itself, or a framework's app around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import quote

from stoker.placement.errors import FunctionError
from stoker.runtime.handlers.calls import contained
from stoker.runtime.handlers.http import Headers, Request, Response, checked_headers

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class AsgiHandler:
    """Serves `app` in the event loop."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app
        # The loop itself holds tasks weakly: what an app does after its answer is held here.
        self._after: set[asyncio.Task[None]] = set()

    async def __call__(self, request: Request) -> Response:
        call = _Call(self._app, request)
        try:
            status, headers = await call.head()
            body, more = await call.piece()
        except BaseException:
            await call.cancel()
            raise
        if more:
            return Response(status, headers, self._pieces(call, body))
        self._leave(call)
        return Response(status, headers, body)

    async def _pieces(self, call: _Call, first: bytes) -> AsyncGenerator[bytes, None]:
        more = True
        try:
            yield first
            while more:
                piece, more = await call.piece()
                if piece:
                    yield piece
            self._leave(call)
        finally:
            if more:
                await call.cancel()

    def _leave(self, call: _Call) -> None:
        """The answer is complete; the app may go on with what it does in the background."""
        self._after.add(call.task)
        call.task.add_done_callback(self._after.discard)


class _Call:
    """One request in one task, whose messages are handed over one by one."""

    def __init__(self, app: AsgiApp, request: Request) -> None:
        self._app = app
        self._body: bytes | None = request.body
        self._scope = scope_of(request)
        self._messages: asyncio.Queue[Message | FunctionError | None] = asyncio.Queue(1)
        self._answered = asyncio.Event()
        self.task = asyncio.ensure_future(self._run())

    async def head(self) -> tuple[int, Headers]:
        """Status and headers; FunctionError when the app does not send any."""
        message = await self._next("http.response.start")
        with contained():
            headers = (
                (bytes(name).decode("latin-1"), bytes(value).decode("latin-1"))
                for name, value in message.get("headers") or ()
            )
            return int(message["status"]), checked_headers(headers)

    async def piece(self) -> tuple[bytes, bool]:
        """The next piece of the body, and whether there is more."""
        message = await self._next("http.response.body")
        with contained():
            more = bool(message.get("more_body"))
            if not more:
                self._answered.set()
            return bytes(message.get("body", b"")), more

    async def cancel(self) -> None:
        """Ends the app's task, which may need a moment to clean up."""
        self._answered.set()
        self.task.cancel()
        await asyncio.wait({self.task})

    async def _next(self, kind: str) -> Message:
        message = await self._messages.get()
        if isinstance(message, FunctionError):
            raise message
        with contained():
            found = "the end of the call" if message is None else message["type"]
            if message is None or found != kind:
                raise RuntimeError(f"expected the function to send {kind}, found {found}")
            return message

    async def _run(self) -> None:
        end: FunctionError | None = None
        try:
            with contained():
                await self._app(self._scope, self._receive, self._send)
        except FunctionError as error:
            end = error
        if not self._answered.is_set():
            await self._messages.put(end)

    async def _receive(self) -> Message:
        if self._body is None:
            await self._answered.wait()
            return {"type": "http.disconnect"}
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def _send(self, message: Message) -> None:
        if not self._answered.is_set():
            await self._messages.put(message)


def scope_of(request: Request) -> Scope:
    """The request as ASGI 3 has it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.path,
        "raw_path": quote(request.path).encode(),
        "root_path": "",
        "query_string": request.query.encode("latin-1"),
        "headers": [
            (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in request.public_headers
        ],
        "client": None,
        "server": None,
        "state": {},
    }
