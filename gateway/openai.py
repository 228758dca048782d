"""The OpenAI routes: a model is a function, and errors are OpenAI error objects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from stoker.gateway.access import check_invoke
from stoker.gateway.auth import Credentials
from stoker.gateway.exchange import (
    COMPONENT,
    ClientGone,
    Headers,
    Reply,
    Request,
    retry_after,
)
from stoker.gateway.headers import call_id_of
from stoker.gateway.invoke import Call, Invoker
from stoker.gateway.json_body import json_object
from stoker.gateway.upstream import UpstreamResponse
from stoker.placement.errors import (
    BadRequest,
    FunctionNotFound,
    NotFound,
    StokerError,
    Unauthorized,
)
from stoker.placement.names import DEFAULT_NAMESPACE
from stoker.placement.records import FunctionRecord
from stoker.placement.token_record import TokenRecord
from stoker.placement.view import Snapshot

# Which tasks a route serves.
_TASKS: Mapping[str, tuple[str, ...]] = {
    "/v1/chat/completions": ("chat",),
    "/v1/completions": ("completion", "chat"),
    "/v1/embeddings": ("embed",),
}
_ERROR_BYTES_MAXIMUM = 64 * 1024
# Larger bodies are parsed in a thread, so that the others' tokens go on flowing.
_INLINE_BYTES_MAXIMUM = 256 * 1024


class OpenAiSurface:
    token_wanted = True

    def __init__(self, call_id: str) -> None:
        self.headers: Headers = [(b"x-request-id", call_id.encode())]

    def error(self, error: StokerError) -> tuple[int, Headers, bytes]:
        headers = [(b"content-type", b"application/json"), COMPONENT, *retry_after(error)]
        if isinstance(error, Unauthorized):
            headers.append((b"www-authenticate", b"Bearer"))
        return error.status, headers, orjson.dumps({"error": error_object(error)})

    def stream_error(self, error: StokerError) -> bytes:
        return orjson.dumps({"error": error_object(error)})

    async def translated(self, response: UpstreamResponse) -> bytes | None:
        """The instance's own error as an OpenAI error object."""
        if response.status < 400 or "json" not in response.header("Content-Type"):
            return None
        body = await response.read_at_most(_ERROR_BYTES_MAXIMUM)
        if body is None:
            return orjson.dumps({"error": _object("The function's error is too long.", 500, None)})
        try:
            wire = orjson.loads(body)["error"]
            error = StokerError.from_wire(wire) if "cause" in wire else None
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return body
        if error is None:
            return body
        return orjson.dumps({"error": error_object(error, response.status)})


def error_object(error: StokerError, status: int | None = None) -> dict[str, Any]:
    """The error as OpenAI clients know it: message, type, param, code."""
    if isinstance(error, FunctionNotFound):
        return _object(str(error), 404, "model_not_found", "model")
    return _object(str(error), status or error.status, error.code)


class OpenAi:
    """/v1/* and its alias /openai/v1/*."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        invoker: Invoker,
        credentials: Credentials,
        body_bytes_maximum: int,
    ) -> None:
        self._snapshot = snapshot
        self._invoker = invoker
        self._credentials = credentials
        self._body_bytes_maximum = body_bytes_maximum

    async def route(self, request: Request, reply: Reply) -> None:
        call_id = call_id_of(request)
        call = Call(request, reply, OpenAiSurface(call_id), call_id)
        try:
            call.caller = self._credentials.caller(request.header(b"authorization"))
            if call.caller is None:
                raise Unauthorized(
                    "Expected a token of Stoker or its password as a bearer token, found another "
                    "or none.",
                    "Give a token or the content of auth/password as the API key.",
                )
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
        _check_method(call.request, "POST")
        body = await call.request.read(self._body_bytes_maximum)
        inline = len(body) <= _INLINE_BYTES_MAXIMUM
        fields = json_object(body) if inline else await asyncio.to_thread(json_object, body)
        model = fields.get("model")
        if not isinstance(model, str):
            raise BadRequest(f"Expected a text as model, found {model!r:.80}.", "Name a function.")
        function = self._invoker.find(model)
        if function.task not in _TASKS[path]:
            raise BadRequest(
                f"Expected a function with the task {' or '.join(_TASKS[path])} at {path}, "
                f"found {model} with the task {function.task}.",
                "Use the route of its task.",
            )
        await self._invoker.answer(call, model, path)

    async def _models(self, call: Call, path: str) -> None:
        _check_method(call.request, "GET", "HEAD")
        functions = self._snapshot().functions.values()
        if path == "/v1/models":
            caller = call.caller
            models = [_model(f) for f in functions if f.task != "custom" and _covers(caller, f)]
            models.sort(key=lambda model: model["id"])
            answer: dict[str, Any] = {"object": "list", "data": models}
        elif path.startswith("/v1/models/"):
            found = self._invoker.find(path.removeprefix("/v1/models/"))
            check_invoke(call.caller, found, token_wanted=True)
            answer = _model(found)
        else:
            raise NotFound(f"Expected one of {', '.join(_TASKS)} or /v1/models, found {path:.80}.")
        headers = [(b"content-type", b"application/json"), *call.headers()]
        await call.reply.whole(200, headers, orjson.dumps(answer))


def _covers(caller: TokenRecord | None, function: FunctionRecord) -> bool:
    return caller is not None and caller.covers(function.namespace, function.name)


def _check_method(request: Request, *allowed: str) -> None:
    if request.method not in allowed:
        raise BadRequest(
            f"Expected {' or '.join(allowed)} at {request.path:.80}, found {request.method}.",
            f"Use {allowed[0]}.",
        )


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
