"""The HTTP server of a worker, and one request through it before anybody sends one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from stoker.placement.errors import StartFailed
from stoker.runtime.handlers.http import Handler
from stoker.runtime.worker_http import Ready, WorkerApp

KEEP_ALIVE_SECONDS = 300
"""Longer than a gateway keeps an idle connection, so that it never reuses one being closed."""
REHEARSAL_SECONDS_MAXIMUM = 30.0
ANSWER_BYTES_MAXIMUM = 1 << 20


class Server(uvicorn.Server):
    """uvicorn without its signal handlers, which end the process by the signal after draining."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def server_config(app: Callable[..., Awaitable[None]]) -> uvicorn.Config:
    """How a worker serves; loading it imports what serving needs."""
    return uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )


def rehearse(handler: Handler, path: str, body: bytes) -> None:
    """Sends `handler` one request through all that a request of a client goes through.

    Code that has never run is slow the first time: its pages are still the zygote's or not in
    memory, and what it looks up is not cached. StartFailed if the answer is not 200, or takes more
    than REHEARSAL_SECONDS_MAXIMUM. Uses an event loop of its own.
    """
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            answer = runner.run(_exchange(handler, path, body))
    except TimeoutError:
        raise StartFailed(
            f"Expected a rehearsed request to {path} to be answered, found no answer in "
            f"{REHEARSAL_SECONDS_MAXIMUM:g} s.",
            "The function's log has what it wrote.",
        ) from None
    status = answer.partition(b"\r\n")[0].decode("latin-1")
    if " 200 " not in status:
        raise StartFailed(
            f"Expected a rehearsed request to {path} to be answered with 200, found "
            f"{status or 'nothing'!r}.",
            "The function's log has what it wrote.",
        )


async def _exchange(handler: Handler, path: str, body: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[Ready] = loop.create_future()
    ready.set_result(Ready(handler))
    config = server_config(WorkerApp("", "", ready, 1, 0.0))
    config.load()
    ours, theirs = socket.socketpair()
    async with asyncio.timeout(REHEARSAL_SECONDS_MAXIMUM):
        serving = lambda: HttpToolsProtocol(config, ServerState(), {})  # noqa: E731
        await loop.connect_accepted_socket(serving, theirs)
        reader, writer = await asyncio.open_connection(sock=ours)
        head = (
            f"POST {path} HTTP/1.1\r\nhost: worker\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        with contextlib.closing(writer):
            writer.write(head.encode() + body)
            answer = bytearray()
            while len(answer) < ANSWER_BYTES_MAXIMUM and (piece := await reader.read(65536)):
                answer += piece
    return bytes(answer)
