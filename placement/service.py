"""The HTTP face of placement: POST /place, /report and /why, GET /healthz and /metrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import orjson
import structlog
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from stoker.placement.call_signature import HEADER, check_call, target_of
from stoker.placement.errors import BadRequest, PayloadTooLarge, StokerError
from stoker.placement.names import split_function_name
from stoker.placement.records import (
    DemandReport,
    FunctionDemand,
    PlaceAnswer,
    PlaceRequest,
    decode,
    encode,
)
from stoker.placement.why import WhyAnswer, WhyRequest

BODY_BYTES_MAXIMUM = 1024 * 1024
GATEWAY_ID_CHARACTERS_MAXIMUM = 128
CALL_ID_CHARACTERS_MAXIMUM = 128
CALLS_MAXIMUM = 64

_log = structlog.get_logger()
_R = TypeVar("_R")


class Placer(Protocol):
    """What the service needs of the controller; may block on the store."""

    @property
    def leading(self) -> bool: ...

    def place(self, request: PlaceRequest) -> PlaceAnswer: ...

    def report(self, report: DemandReport) -> None: ...

    def why(self, name: str) -> WhyAnswer: ...

    def metrics(self) -> bytes: ...


def create_app(placer: Placer, cluster_token: str) -> Starlette:
    """The ASGI app; every route but /healthz and /metrics wants a signature."""

    async def place(request: Request) -> Response:
        asked = await _read(request, PlaceRequest, cluster_token)
        _check_gateway_id(asked.gateway_id)
        split_function_name(asked.function)
        _check_demand(asked.demand)
        _check_calls(asked.call_ids)
        answer = await run_in_threadpool(placer.place, asked)
        return _json(encode(answer))

    async def report(request: Request) -> Response:
        told = await _read(request, DemandReport, cluster_token)
        _check_gateway_id(told.gateway_id)
        for demand in told.functions.values():
            _check_demand(demand)
        await run_in_threadpool(placer.report, told)
        return Response(status_code=204)

    async def why(request: Request) -> Response:
        asked = await _read(request, WhyRequest, cluster_token)
        _check_calls((asked.name,))
        return _json(encode(await run_in_threadpool(placer.why, asked.name)))

    async def metrics(_: Request) -> Response:
        text = await run_in_threadpool(placer.metrics)
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(_: Request) -> Response:
        return _json(orjson.dumps({"status": "ok", "leading": placer.leading}))

    return Starlette(
        routes=[
            Route("/place", place, methods=["POST"]),
            Route("/report", report, methods=["POST"]),
            Route("/why", why, methods=["POST"]),
            Route("/metrics", metrics, methods=["GET"]),
            Route("/healthz", healthz, methods=["GET"]),
        ],
        exception_handlers=_HANDLERS,
    )


async def _read(request: Request, cls: type[_R], cluster_token: str) -> _R:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > BODY_BYTES_MAXIMUM:
            raise PayloadTooLarge(
                f"Expected a body of at most {BODY_BYTES_MAXIMUM} bytes, found more."
            )
    offered, target = request.headers.get(HEADER, ""), target_of(request.scope)
    check_call(cluster_token, offered, request.method, target, bytes(body))
    return decode(cls, bytes(body))


def _check_gateway_id(gateway_id: str) -> None:
    if not 0 < len(gateway_id) <= GATEWAY_ID_CHARACTERS_MAXIMUM:
        raise BadRequest(
            f"Expected a gateway_id of 1 to {GATEWAY_ID_CHARACTERS_MAXIMUM} characters, "
            f"found {len(gateway_id)}."
        )


def _check_calls(call_ids: tuple[str, ...]) -> None:
    longest = max(map(len, call_ids), default=0)
    if len(call_ids) > CALLS_MAXIMUM or longest > CALL_ID_CHARACTERS_MAXIMUM:
        raise BadRequest(
            f"Expected at most {CALLS_MAXIMUM} names of {CALL_ID_CHARACTERS_MAXIMUM} characters, "
            f"found {len(call_ids)} of up to {longest}."
        )


def _check_demand(demand: FunctionDemand) -> None:
    told = (
        *(demand.in_flight, demand.queued, demand.requests, demand.queued_tokens),
        *(demand.idle_seconds, demand.request_seconds),
        *(demand.prefill_seconds, demand.waited_seconds),
    )
    if not all(0 <= number < math.inf for number in told):
        raise BadRequest(f"Expected numbers of at least 0 in a demand, found {demand}.")


def _json(payload: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(payload, status, headers, media_type="application/json")


def error_response(error: StokerError) -> Response:
    """The error as an HTTP answer: its status, its wire form and Retry-After in whole seconds."""
    headers = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_seconds)))
    return _json(orjson.dumps({"error": error.to_wire()}), error.status, headers)


async def _on_stoker_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, StokerError)
    return error_response(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    routes = "POST /place, POST /report, POST /why, GET /healthz or GET /metrics"
    cause = f"Expected {routes}, found {request.method} there."
    wire = BadRequest(cause).to_wire()
    return _json(orjson.dumps({"error": wire}), error.status_code, dict(error.headers or {}))


async def _on_disconnect(_: Request, __: Exception) -> Response:
    return Response(status_code=400)


async def _on_bug(request: Request, error: Exception) -> Response:
    _log.error("request_broken", path=request.url.path, error=type(error).__name__)
    return error_response(StokerError("Placement failed in a way that it does not know."))


_HANDLERS: dict[Any, Callable[[Request, Exception], Any]] = {
    StokerError: _on_stoker_error,
    HTTPException: _on_http_exception,
    ClientDisconnect: _on_disconnect,
    Exception: _on_bug,
}
