"""Calls a WSGI application, such as the Flask app of functions-framework, in threads."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable
from typing import Any

from stoker.runtime.handlers.calls import Steps, contained, thread_pool
from stoker.runtime.handlers.http import Headers, Request, Response, checked_headers

Environ = dict[str, Any]
WsgiApp = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

WHOLE_BYTES_MAXIMUM = 1 << 20
"""An answer of known length up to this is drawn at once, a longer one piece by piece."""


class WsgiHandler:
    """Serves `app` with at most `concurrency` threads; what it yields leaves piece by piece."""

    def __init__(self, app: WsgiApp, concurrency: int) -> None:
        self._app = app
        self._threads = thread_pool(concurrency)

    async def __call__(self, request: Request) -> Response:
        steps = Steps(self._threads)
        with contained():
            status, headers, body = await steps.run(_call, self._app, request)
        if isinstance(body, bytes):
            return Response(status, headers, body)

        async def pieces() -> Any:
            with contained():
                drawn = steps.iterate(iter(body), getattr(body, "close", None))
                try:
                    async for piece in drawn:
                        yield piece
                finally:
                    await drawn.aclose()

        return Response(status, headers, pieces())


def _call(app: WsgiApp, request: Request) -> tuple[int, Headers, Any]:
    head: list[tuple[int, Headers]] = []

    def start_response(status: str, headers: Iterable[tuple[str, str]], _: Any = None) -> None:
        head.append((int(status.split(" ", 1)[0]), checked_headers(headers)))

    body = app(environ_of(request), start_response)
    if not head:
        raise RuntimeError("the application did not call start_response")
    status, headers = head[-1]
    length = next((value for name, value in headers if name.lower() == "content-length"), "")
    if not length.isdigit() or int(length) > WHOLE_BYTES_MAXIMUM:
        return status, headers, body
    try:
        return status, headers, b"".join(body)
    finally:
        close = getattr(body, "close", None)
        if close is not None:
            close()


def environ_of(request: Request) -> Environ:
    """The request as WSGI has it (PEP 3333)."""
    environ: Environ = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": request.path.encode().decode("latin-1"),
        "QUERY_STRING": request.query,
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(request.body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in request.public_headers:
        key = name.upper().replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = f"HTTP_{key}"
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    # The body is whole by now, however it came.
    environ["CONTENT_LENGTH"] = str(len(request.body))
    environ.pop("HTTP_TRANSFER_ENCODING", None)
    return environ
