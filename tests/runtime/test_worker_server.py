"""The server of a worker: one request through it ahead of all others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from stoker.placement.errors import BadRequest, StartFailed
from stoker.runtime import worker_server
from stoker.runtime.handlers.http import Request, Response
from stoker.runtime.worker_server import rehearse


def test_a_rehearsed_request_reaches_the_handler_as_a_clients_would() -> None:
    seen: list[Request] = []

    async def handle(request: Request) -> Response:
        seen.append(request)
        return Response(200, (), b"yes")

    rehearse(handle, "/v1/completions", b'{"prompt": [0]}')
    (request,) = seen
    assert (request.method, request.path) == ("POST", "/v1/completions")
    assert request.body == b'{"prompt": [0]}'
    assert request.header("content-type") == "application/json"


def test_a_rehearsed_stream_is_read_to_its_end() -> None:
    sent: list[int] = []

    async def pieces() -> AsyncGenerator[bytes]:
        for number in range(100):
            sent.append(number)
            yield bytes(1000)

    async def handle(_request: Request) -> Response:
        return Response(200, (), pieces())

    rehearse(handle, "/", b"{}")
    assert sent == list(range(100))


def test_a_rehearsal_that_fails_is_told_with_its_status() -> None:
    async def handle(_request: Request) -> Response:
        raise BadRequest("Expected something, found nothing.", "Send something.")

    with pytest.raises(StartFailed, match="400"):
        rehearse(handle, "/", b"{}")


def test_a_rehearsal_that_hangs_ends_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_server, "REHEARSAL_SECONDS_MAXIMUM", 0.05)

    async def handle(_request: Request) -> Response:
        await asyncio.sleep(3600)
        return Response()

    with pytest.raises(StartFailed, match=r"0\.05 s"):
        rehearse(handle, "/", b"{}")
