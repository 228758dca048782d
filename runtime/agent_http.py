"""The agent's own HTTP: checkpoints, their loads and their chunks, function logs, probes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Protocol

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from stoker.placement.call_signature import HEADER, check_call, target_of
from stoker.placement.errors import (
    BadRequest,
    DeadlineExceeded,
    NotFound,
    PayloadTooLarge,
    StokerError,
)
from stoker.placement.load_answer import LoadAnswer
from stoker.placement.records import (
    CheckpointRef,
    EvictRequest,
    ResolveRequest,
    decode,
    encode,
)
from stoker.runtime.checkpoint.tiers import Resident
from stoker.runtime.chunk_http import ChunkRoute, LendChunk
from stoker.runtime.function_logs import FunctionLogs, LogQuery

BODY_BYTES_MAXIMUM = 64 * 1024
RESOLVE_SECONDS_MAXIMUM = 60.0
RESOLVE_THREADS = 4
FOLLOW_WAIT_SECONDS = 15.0
CONNECTIONS_MAXIMUM = 128


class Checkpoints(Protocol):
    """What the routes need of the checkpoint cache. All of it blocks, and is run in threads."""

    def resolve(self, uri: str, adapter: bool) -> CheckpointRef: ...

    def evict(self, digest: str, *, disk: bool) -> None: ...

    def residents(self) -> Sequence[Resident]: ...

    @property
    def lend(self) -> LendChunk: ...


def application(
    cluster_token: str,
    checkpoints: Checkpoints,
    logs: FunctionLogs,
    health: Callable[[], dict[str, object]],
) -> Starlette:
    """`health` answers at once."""
    routes = _Routes(cluster_token, checkpoints, logs, health)
    return Starlette(
        routes=[
            Route("/resolve", routes.resolve, methods=["POST"]),
            Route("/evict", routes.evict, methods=["POST"]),
            Route("/chunks/{digest}/{ordinal}", routes.chunks, methods=["GET"]),
            Route("/loads/{digest}", routes.loads, methods=["GET"]),
            Route("/logs", routes.logs, methods=["GET"]),
            Route("/healthz", routes.healthz, methods=["GET"]),
        ],
        exception_handlers={StokerError: _error_answer, HTTPException: _http_error_answer},
    )


class Server(uvicorn.Server):
    """A server in somebody else's loop, who also takes the signals."""

    def __init__(self, app: Starlette) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                access_log=False,
                limit_concurrency=CONNECTIONS_MAXIMUM,
                timeout_graceful_shutdown=1,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Routes:
    def __init__(
        self,
        cluster_token: str,
        checkpoints: Checkpoints,
        logs: FunctionLogs,
        health: Callable[[], dict[str, object]],
    ) -> None:
        self._token = cluster_token
        self._checkpoints = checkpoints
        self._logs = logs
        self._health = health
        self._chunks = ChunkRoute(checkpoints.lend)
        self._resolvers = ThreadPoolExecutor(RESOLVE_THREADS, "resolve")

    async def resolve(self, request: Request) -> Response:
        asked = decode(ResolveRequest, await self._signed_body(request))
        try:
            loop = asyncio.get_running_loop()
            resolving = loop.run_in_executor(
                self._resolvers, self._checkpoints.resolve, asked.uri, asked.adapter
            )
            ref = await asyncio.wait_for(resolving, RESOLVE_SECONDS_MAXIMUM)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"Expected the checkpoint's source to answer within {RESOLVE_SECONDS_MAXIMUM:g} s, "
                "found no answer.",
                "Check the endpoint of the source and try again.",
            ) from error
        return Response(encode(ref), media_type="application/json")

    async def evict(self, request: Request) -> Response:
        asked = decode(EvictRequest, await self._signed_body(request))
        await asyncio.to_thread(self._checkpoints.evict, asked.digest, disk=asked.disk)
        return Response(status_code=204)

    async def loads(self, request: Request) -> Response:
        self._authorize(request)
        digest = request.path_params["digest"]
        residents = await asyncio.to_thread(self._checkpoints.residents)
        loaded = sum(resident.dram_bytes for resident in residents if resident.digest == digest)
        return Response(encode(LoadAnswer(loaded)), media_type="application/json")

    async def chunks(self, request: Request) -> Response:
        self._authorize(request)
        return await self._chunks.answer(request)

    async def logs(self, request: Request) -> Response:
        self._authorize(request)
        query = _log_query(request)
        follow = _flag(request, "follow")

        async def lines() -> AsyncIterator[bytes]:
            # Nothing is awaited between these two, so no line is missed or sent twice.
            follower = self._logs.follow(query) if follow else None
            reading = self._logs.open(query)
            try:
                yield b"".join(await asyncio.to_thread(reading.lines))
                while follower is not None:
                    yield b"".join(await follower.read(FOLLOW_WAIT_SECONDS))
            finally:
                if follower is not None:
                    self._logs.unfollow(query, follower)

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    async def healthz(self, _request: Request) -> Response:
        """Open to all: a probe has no token, and the answer names nothing of a user's."""
        return Response(orjson.dumps(self._health()), media_type="application/json")

    async def _signed_body(self, request: Request) -> bytes:
        body = await _bounded_body(request)
        self._authorize(request, body)
        return body

    def _authorize(self, request: Request, body: bytes = b"") -> None:
        offered, target = request.headers.get(HEADER, ""), target_of(request.scope)
        check_call(self._token, offered, request.method, target, body)


async def _bounded_body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > BODY_BYTES_MAXIMUM:
            raise PayloadTooLarge(
                f"Expected a body of at most {BODY_BYTES_MAXIMUM} bytes, found more."
            )
    return body


def _log_query(request: Request) -> LogQuery:
    parameters = request.query_params
    tail, since = parameters.get("tail"), parameters.get("since")
    if tail and not tail.isdecimal():
        raise BadRequest(f"Expected a whole number as tail, found {tail!r:.40}.")
    return LogQuery(
        key=parameters.get("function", ""),
        tail=int(tail) if tail else None,
        since=_moment(since) if since else None,
        instance=parameters.get("instance") or None,
    )


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadRequest(f"Expected an RFC 3339 time as since, found {text!r:.80}.") from error
    if moment.tzinfo is None:
        raise BadRequest(f"Expected a time with its zone as since, found {text!r:.80}.")
    return moment


def _flag(request: Request, name: str) -> bool:
    text = request.query_params.get(name, "0")
    if text not in ("0", "1"):
        raise BadRequest(f"Expected 0 or 1 as {name}, found {text!r:.40}.")
    return text == "1"


async def _error_answer(_request: Request, error: Exception) -> Response:
    assert isinstance(error, StokerError)
    headers = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_seconds)))
    return Response(
        orjson.dumps({"error": error.to_wire()}), error.status, headers, "application/json"
    )


async def _http_error_answer(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        known: StokerError = NotFound(f"Expected a known path, found {request.url.path!r:.80}.")
    else:
        known = BadRequest(f"Expected another method than {request.method!r:.20} here.")
    return await _error_answer(request, known)
