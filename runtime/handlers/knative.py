"""Knative functions (func-python): `new()` or `handle(scope, receive, send)`, an ASGI callable.

An instance made by `new()` may have start(cfg), stop(), alive() and ready(). func.yaml's
`invoke: cloudevent` gives `handle` the event in `scope["event"]` and a `send` that takes events;
both come from the func-python package of the function's environment.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import yaml

from stoker.placement.errors import StartFailed
from stoker.placement.function_code import entry_file
from stoker.runtime.handlers.asgi import AsgiHandler, Receive, Scope, Send
from stoker.runtime.handlers.code import expecting, import_from, listing
from stoker.runtime.handlers.http import Request, Response

READY_SECONDS = 0.05
_PLAIN_TEXT = (("content-type", "text/plain"),)


class KnativeHandler:
    """Serves one function; `start` before the first request, `stop` after the last.

    It `takes_events` and nothing else, or every request as it came.
    """

    def __init__(self, function: Any, wraps: Callable[[Any], Any] | None = None) -> None:
        self.takes_events = wraps is not None
        self._function = function
        handle = function.handle if wraps is None else wraps(function.handle)
        self._serve = AsgiHandler(handle)

    async def __call__(self, request: Request) -> Response:
        if request.path == "/health/liveness":
            return self._health("alive")
        if request.path == "/health/readiness":
            return self._health("ready")
        return await self._serve(request)

    async def start(self) -> None:
        """Calls the function's `start` and waits until it says that it is ready."""
        with expecting("start(cfg) and ready() to return"):
            if hasattr(self._function, "start"):
                await _result(self._function.start(os.environ.copy()))
            # The contract has no call for becoming ready: whoever wants to know must ask.
            while not self._says("ready")[0]:
                await asyncio.sleep(READY_SECONDS)

    async def stop(self) -> None:
        """Calls the function's `stop`."""
        if hasattr(self._function, "stop"):
            await _result(self._function.stop())

    def _health(self, question: str) -> Response:
        holds, message = self._says(question)
        return Response(200 if holds else 500, _PLAIN_TEXT, message.encode())

    def _says(self, question: str) -> tuple[bool, str]:
        """The function's answer and message; yes if it does not know the question."""
        answer: Any = getattr(self._function, question, lambda: True)()
        holds, message = answer if isinstance(answer, tuple) else (answer, "OK")
        return bool(holds), str(message)


class _Plain:
    """A function that is a bare `handle`."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle


def load(code_dir: Path) -> KnativeHandler:
    """The function in `code_dir`, imported as func-python does; StartFailed if it has none."""
    entry = entry_file("knative", lambda name: (code_dir / name).is_file())
    if entry is None:
        raise StartFailed(
            f"Expected function/func.py or func.py in the function's code, "
            f"found {listing(code_dir)}.",
            "Define new(), or handle(scope, receive, send), there.",
        )
    logging.basicConfig(level=logging.INFO)
    name = "func" if entry == "func.py" else "function"
    module = import_from(code_dir, name)
    if name == "function" and not _exports(module) and (code_dir / "function/func.py").is_file():
        module = import_from(code_dir, "function.func")
    if not _exports(module):
        raise StartFailed(
            f"Expected new() or handle(scope, receive, send) in {entry}, found neither.",
            "Define one of them there.",
        )
    with expecting("new() to return"):
        function = module.new() if hasattr(module, "new") else _Plain(module.handle)
    if not callable(getattr(function, "handle", None)):
        raise StartFailed(
            f"Expected new() to return an object with a method handle(scope, receive, send), "
            f"found {type(function).__name__} without it.",
            "Give it that method.",
        )
    if _invoked_by(code_dir / "func.yaml") == "cloudevent":
        return KnativeHandler(function, _with_events())
    return KnativeHandler(function)


def _exports(module: Any) -> bool:
    return callable(getattr(module, "new", None)) or callable(getattr(module, "handle", None))


def _invoked_by(path: Path) -> str:
    """`invoke` of a func.yaml: http or cloudevent."""
    if not path.is_file():
        return "http"
    try:
        document = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        raise StartFailed(
            f"Expected YAML in {path.name}, found: {error}.", "Correct it and deploy again."
        ) from error
    invoke = document.get("invoke") if isinstance(document, dict) else None
    if invoke not in (None, "http", "cloudevent"):
        raise StartFailed(
            f"Expected invoke: http or cloudevent in {path.name}, found {invoke!r:.40}.",
            "Correct it and deploy again.",
        )
    return invoke or "http"


def _with_events() -> Callable[[Any], Any]:
    """What gives `handle` the CloudEvent of each request."""
    with expecting("func_python.cloudevent to be imported"):
        events = importlib.import_module("func_python.cloudevent")

    def wraps(handle: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                scope["event"] = await events.decode_event(scope, receive)
            except Exception as error:  # noqa: BLE001 (whatever it is, the event is at fault)
                await _refuse(send, error)
                return
            await handle(scope, receive, events.CloudEventSender(send))

        return serve

    return wraps


async def _refuse(send: Send, error: Exception) -> None:
    text = f"Expected a CloudEvent in binary or structured mode, found: {error}."
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


async def _result(value: Any) -> None:
    if inspect.isawaitable(value):
        await value
