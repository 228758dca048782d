"""The OpenAI routes: a model is a function, and errors are OpenAI error objects."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from stoker.gateway.access import check_invoke
from stoker.gateway.auth import Credentials
from stoker.gateway.call import Call, Translated
from stoker.gateway.exchange import (
    COMPONENT,
    ClientGone,
    Headers,
    Reply,
    Request,
    check_method,
    error_headers,
)
from stoker.gateway.headers import call_id_of
from stoker.gateway.invoke import Invoker
from stoker.gateway.json_body import json_object
from stoker.gateway.upstream import UpstreamResponse
from stoker.gateway.waiting import Comments, Stages
from stoker.placement.errors import (
    BadRequest,
    CheckpointChanged,
    CrashLoop,
    FunctionNotFound,
    NotFound,
    StokerError,
    Unauthorized,
)
from stoker.placement.names import DEFAULT_NAMESPACE
from stoker.placement.openai_requests import (
    chat_request,
    completion_request,
    embedding_request,
)
from stoker.placement.records import FunctionRecord
from stoker.placement.token_record import TokenRecord
from stoker.placement.view import Snapshot

# Which tasks a route serves, and what its bodies must be.
_TASKS: Mapping[str, tuple[str, ...]] = {
    "/v1/chat/completions": ("chat",),
    "/v1/completions": ("completion", "chat"),
    "/v1/embeddings": ("embed",),
}
_CHECKS: Mapping[str, Callable[[Mapping[str, Any]], object]] = {
    "/v1/chat/completions": chat_request,
    "/v1/completions": completion_request,
    "/v1/embeddings": embedding_request,
}
_ERROR_BYTES_MAXIMUM = 64 * 1024
# Larger bodies are parsed in a thread, so that the others' tokens go on flowing.
_INLINE_BYTES_MAXIMUM = 256 * 1024
_JSON = (b"content-type", b"application/json")


class OpenAiSurface:
    token_wanted = True

    def __init__(self, call_id: str) -> None:
        self.headers: Headers = [(b"x-request-id", call_id.encode())]

    def error(self, error: StokerError) -> tuple[int, Headers, bytes]:
        headers = [_JSON, COMPONENT, *error_headers(error)]
        if isinstance(error, Unauthorized):
            headers.append((b"www-authenticate", b"Bearer"))
        if _is_final(error):
            headers.append((b"x-should-retry", b"false"))
        return error.status, headers, orjson.dumps({"error": error_object(error)})

    def stream_error(self, error: StokerError) -> bytes:
        return orjson.dumps({"error": error_object(error)})

    async def translated(self, response: UpstreamResponse) -> Translated | None:
        """The instance's own error as an OpenAI error object."""
        if response.status < 400 or "json" not in response.header("Content-Type"):
            return None
        body = await response.read_at_most(_ERROR_BYTES_MAXIMUM)
        if body is None:
            too_long = _object("The function's error is too long.", 500, None)
            return Translated(response.status, [_JSON], orjson.dumps({"error": too_long}))
        error = wire_error_in(body)
        if error is None:
            return Translated(response.status, [_JSON], body)
        headers = [_JSON, (b"x-should-retry", b"false")] if _is_final(error) else [_JSON]
        told = {"error": error_object(error, response.status)}
        return Translated(response.status, headers, orjson.dumps(told))


def wire_error_in(body: bytes) -> StokerError | None:
    """The error that an instance told in its answer, if it is one of ours."""
    try:
        wire = orjson.loads(body)["error"]
        return StokerError.from_wire(wire) if isinstance(wire, dict) and "cause" in wire else None
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None


def _is_final(error: StokerError) -> bool:
    """Whether asking again is in vain although the status alone would have a client do so."""
    given_up = isinstance(error, CrashLoop) and error.retry_after_seconds is None
    return given_up or isinstance(error, CheckpointChanged)


def error_object(error: StokerError, status: int | None = None) -> dict[str, Any]:
    """The error as OpenAI clients know it: message, type, param, code."""
    if isinstance(error, FunctionNotFound):
        return _object(str(error), 404, "model_not_found", "model")
    return _object(str(error), status or error.status, error.code, error.details.get("param"))


class OpenAi:
    """/v1/* and its alias /openai/v1/*."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        invoker: Invoker,
        stages: Stages,
        credentials: Credentials,
        body_bytes_maximum: int,
    ) -> None:
        self._snapshot = snapshot
        self._invoker = invoker
        self._stages = stages
        self._credentials = credentials
        self._body_bytes_maximum = body_bytes_maximum

    async def route(self, request: Request, reply: Reply) -> None:
        call_id = call_id_of(request)
        call = Call(request, reply, OpenAiSurface(call_id), call_id)
        try:
            call.caller = known_caller(self._credentials, request)
            path = request.path.removeprefix("/openai")
            if path in _TASKS:
                await self._completion(call, path)
            else:
                await self._models(call, path)
        except ClientGone:
            return
        except StokerError as error:
            await self._invoker.refuse(call, error)

    async def _completion(self, call: Call, path: str) -> None:
        check_method(call.request, "POST")
        body = await call.request.read(self._body_bytes_maximum)
        inline = len(body) <= _INLINE_BYTES_MAXIMUM
        fields = json_object(body) if inline else await asyncio.to_thread(json_object, body)
        model = fields.get("model")
        if not isinstance(model, str):
            raise BadRequest(
                f"Expected a text as model, found {model!r:.80}.", "Name a function.", param="model"
            )
        function = self._invoker.find(model)
        if function.task not in _TASKS[path]:
            raise BadRequest(
                f"Expected a function with the task {' or '.join(_TASKS[path])} at {path}, "
                f"found {model} with the task {function.task}.",
                "Use the route of its task.",
                param="model",
            )
        check_invoke(call.caller, function, token_wanted=True)
        # Here already, so that a wrong request starts nothing.
        check = _CHECKS[path]
        if inline:
            check(fields)
        else:
            await asyncio.to_thread(check, fields)
        if fields.get("stream") is True:
            call.comments = self._comments(call, function)
        await self._invoker.answer(call, model, path)

    def _comments(self, call: Call, function: FunctionRecord) -> Comments:
        async def describe() -> str:
            return await self._stages.of(function, time.monotonic() - call.arrived_at)

        return Comments(call.reply, call.headers, describe)

    async def _models(self, call: Call, path: str) -> None:
        check_method(call.request, "GET", "HEAD")
        functions = self._snapshot().functions.values()
        if path == "/v1/models":
            caller = call.caller
            models = [_model(f) for f in functions if f.task != "custom" and covers(caller, f)]
            models.sort(key=lambda model: model["id"])
            answer: dict[str, Any] = {"object": "list", "data": models}
        elif path.startswith("/v1/models/"):
            found = self._invoker.find(path.removeprefix("/v1/models/"))
            check_invoke(call.caller, found, token_wanted=True)
            answer = _model(found)
        else:
            raise NotFound(f"Expected one of {', '.join(_TASKS)} or /v1/models, found {path:.80}.")
        await call.reply.whole(200, [_JSON, *call.headers()], orjson.dumps(answer))


def known_caller(credentials: Credentials, request: Request) -> TokenRecord:
    """Whose token or password it is, as a bearer token or by HTTP Basic; Unauthorized."""
    caller = credentials.caller(request.header(b"authorization"))
    if caller is None:
        raise Unauthorized(
            "Expected a token of Stoker or its password as a bearer token, found another or none.",
            "Give a token or the content of auth/password as the API key.",
        )
    return caller


def covers(caller: TokenRecord | None, function: FunctionRecord) -> bool:
    return caller is not None and caller.covers(function.namespace, function.name)


def _model(function: FunctionRecord) -> dict[str, Any]:
    in_default = function.namespace == DEFAULT_NAMESPACE
    return {
        "id": function.name if in_default else function.key,
        "object": "model",
        "created": int(function.created_at),
        "owned_by": "stoker",
    }


def _object(
    message: str, status: int, code: str | None, param: str | None = None
) -> dict[str, Any]:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    if status == 429:
        kind = "rate_limit_error"
    return {"message": message, "type": kind, "param": param, "code": code}
