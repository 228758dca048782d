"""The Open Inference Protocol, version 2: /v2/*.

A function that embeds takes one tensor of texts (BYTES) and gives `embedding` (FP32, one row per
text). A function of code gets the infer request as JSON at its path /v2/models/<name>/infer and
returns `{"outputs": […]}`; tensors are binary only between client and gateway. Functions that
generate text are OpenAI's.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import orjson

import stoker
from stoker.gateway.access import check_control, check_invoke
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
from stoker.gateway.oip_tensors import (
    HEADER_LENGTH,
    InferRequest,
    Tensor,
    infer_answer,
    output_tensors,
    parse_infer,
)
from stoker.gateway.openai import covers, known_caller, wire_error_in
from stoker.gateway.upstream import UpstreamResponse
from stoker.placement.errors import (
    BadRequest,
    FunctionError,
    NotFound,
    StokerError,
    Unauthorized,
    Unavailable,
    Unsupported,
)
from stoker.placement.names import DEFAULT_NAMESPACE
from stoker.placement.openai_requests import INPUTS_MAXIMUM
from stoker.placement.records import FunctionRecord
from stoker.placement.view import Snapshot

EXTENSIONS = ("binary_tensor_data", "model_repository")
SERVED = ("embed", "custom")
# Larger ones are worked on in a thread, so that the others' tokens go on flowing.
_INLINE_BYTES_MAXIMUM = 256 * 1024
_ERROR_CHARACTERS_MAXIMUM = 4096
_JSON = (b"content-type", b"application/json")
_FLOAT_BYTES = 4
_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(?:/(ready|infer))?")
_GENERATE = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/generate(?:_stream)?")
_REPOSITORY = re.compile(r"/v2/repository/models/([^/]+)/(load|unload)")
# Of the client's request, what says something of a body that the function does not get.
_OF_THE_BODY = (b"content-type", b"accept", b"accept-encoding", HEADER_LENGTH)


class Scales(Protocol):
    """What unloading needs of the functions; it blocks."""

    def scale(self, name: str, body: Mapping[str, Any], query_namespace: str) -> None: ...


class OipSurface:
    """Every error is `{"error": text}`. `answer` makes the reply of what the function returned."""

    token_wanted = True

    def __init__(
        self,
        answer_bytes_maximum: int,
        answer: Callable[[bytes], tuple[Headers, bytes]] | None = None,
    ) -> None:
        self.headers: Headers = []
        self._answer_bytes_maximum = answer_bytes_maximum
        self._answer = answer

    def error(self, error: StokerError) -> tuple[int, Headers, bytes]:
        headers = [_JSON, COMPONENT, *error_headers(error)]
        if isinstance(error, Unauthorized):
            headers.append((b"www-authenticate", b"Bearer"))
        return error.status, headers, self.stream_error(error)

    def stream_error(self, error: StokerError) -> bytes:
        return orjson.dumps({"error": str(error)})

    async def translated(self, response: UpstreamResponse) -> Translated | None:
        body = await response.read_at_most(self._answer_bytes_maximum)
        if body is None:
            return Translated(
                *self.error(
                    FunctionError(
                        f"Expected at most {self._answer_bytes_maximum} bytes of the function.",
                        "Ask for less at once.",
                    )
                )
            )
        if response.status >= 400:
            return Translated(response.status, [_JSON], _error_body(body))
        assert self._answer is not None
        make = partial(self._answer, body)
        try:
            inline = len(body) <= _INLINE_BYTES_MAXIMUM
            headers, answer = make() if inline else await asyncio.to_thread(make)
        except FunctionError as error:
            return Translated(*self.error(error))
        return Translated(200, headers, answer)


class Oip:
    """/v2 and what is below it."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        invoker: Invoker,
        functions: Scales,
        credentials: Credentials,
        body_bytes_maximum: int,
    ) -> None:
        self._snapshot = snapshot
        self._invoker = invoker
        self._functions = functions
        self._credentials = credentials
        self._body_bytes_maximum = body_bytes_maximum

    async def route(self, request: Request, reply: Reply) -> None:
        surface = OipSurface(self._body_bytes_maximum)
        call = Call(request, reply, surface, call_id_of(request))
        try:
            call.caller = known_caller(self._credentials, request)
            path = request.path.rstrip("/")
            if matched := _MODEL.fullmatch(path):
                name, version, verb = matched.groups()
                await self._model(call, self._find(call, name, version), verb or "")
            elif matched := _REPOSITORY.fullmatch(path):
                await self._repository(call, self._find(call, matched[1], None), matched[2])
            elif matched := _GENERATE.fullmatch(path):
                raise _generates(self._find(call, matched[1], matched[2]))
            else:
                await self._server(call, path)
        except ClientGone:
            return
        except StokerError as error:
            await self._invoker.refuse(call, error)

    def _find(self, call: Call, name: str, version: str | None) -> FunctionRecord:
        function = self._invoker.find(name)
        check_invoke(call.caller, function, token_wanted=True)
        if version not in (None, str(function.generation)):
            raise NotFound(
                f"Expected version {function.generation} of {name}, found {version:.80}.",
                "Leave the version out: a function has one at a time.",
            )
        return function

    async def _server(self, call: Call, path: str) -> None:
        check_method(call.request, "GET", "HEAD")
        snapshot = self._snapshot()
        if path == "/v2":
            release = stoker.__version__
            told = {"name": "stoker", "version": release, "extensions": list(EXTENSIONS)}
            await _answer(call, told)
        elif path == "/v2/models":
            served = (f for f in snapshot.functions.values() if f.task in SERVED)
            await _answer(
                call, {"models": sorted(_name(f) for f in served if covers(call.caller, f))}
            )
        elif path in ("/v2/health/live", "/v2/health/ready"):
            ready = bool(snapshot.nodes)
            if not ready and path.endswith("ready"):
                raise Unavailable("No node is up.", "Start one.", retry_after_seconds=5)
            # Specification and servers differ in which of the two a probe is told.
            await _answer(call, {"live": True, "ready": ready})
        else:
            raise NotFound(f"Expected a route of the Open Inference Protocol, found {path:.80}.")

    async def _model(self, call: Call, function: FunctionRecord, verb: str) -> None:
        if verb == "infer":
            await self._infer(call, function)
            return
        check_method(call.request, "GET", "HEAD")
        if not verb:
            await _answer(call, _metadata(function))
            return
        if not _is_ready(self._snapshot(), function, time.time()):
            raise Unavailable(
                f"The starts of {_name(function)} fail.",
                f"See what `stoker describe {_name(function)}` says, and deploy it again.",
            )
        await _answer(call, {"name": _name(function), "ready": True})

    async def _infer(self, call: Call, function: FunctionRecord) -> None:
        check_method(call.request, "POST")
        if function.task not in SERVED:
            raise _generates(function)
        request = call.request
        body = await request.read(self._body_bytes_maximum)
        parse = partial(_parsed, function, body, request.header(HEADER_LENGTH))
        inline = len(body) <= _INLINE_BYTES_MAXIMUM
        asked, path, sent = parse() if inline else await asyncio.to_thread(parse)
        told = {
            "model_name": _name(function),
            "model_version": str(function.generation),
            "id": asked.request_id or call.call_id,
        }
        answer = _embedding_answer if function.task == "embed" else _function_answer
        call.surface = OipSurface(self._body_bytes_maximum, partial(answer, told, asked))
        request.body = sent
        request.headers = [h for h in request.headers if h[0] not in _OF_THE_BODY]
        request.headers += [_JSON, (b"accept", b"application/json")]
        await self._invoker.answer(call, function.key, path)

    async def _repository(self, call: Call, function: FunctionRecord, verb: str) -> None:
        """Load: an instance is there or on its way when this returns. Unload: none is to stay."""
        check_method(call.request, "POST")
        await call.request.read(self._body_bytes_maximum)
        body = {"serviceName": function.name, "namespace": function.namespace, "replicas": 0}
        assert call.caller is not None
        # It is a way to scale the function.
        path = f"/system/scale-function/{function.name}"
        check_control(call.caller, "POST", path, {}, orjson.dumps(body))
        if verb == "load":
            await self._invoker.start(call, function)
        else:
            await asyncio.to_thread(self._functions.scale, function.name, body, "")
        await _answer(call, {"name": _name(function), verb: True})


async def _answer(call: Call, told: Mapping[str, Any]) -> None:
    await call.reply.whole(200, [_JSON, *call.headers()], orjson.dumps(told))


def _parsed(
    function: FunctionRecord, body: bytes, header_length: str
) -> tuple[InferRequest, str, bytes]:
    """The request, and the path and body that the function gets."""
    asked = parse_infer(body, header_length)
    if function.task == "custom":
        return asked, f"/v2/models/{function.name}/infer", orjson.dumps(asked.fields)
    texts = _texts(asked)
    sent = {"model": _name(function), "input": texts, "encoding_format": "base64"}
    return asked, "/v1/embeddings", orjson.dumps(sent)


def _texts(asked: InferRequest) -> Sequence[str]:
    """The texts of the one input; BadRequest."""
    found = [f"{tensor.name} of {tensor.datatype}" for tensor in asked.inputs]
    if len(found) != 1 or asked.inputs[0].datatype != "BYTES":
        raise BadRequest(
            f"Expected one input of BYTES, found {', '.join(found):.200}.", "Send texts alone."
        )
    if not set(asked.wanted) <= {"embedding"}:
        raise BadRequest(
            f"Expected embedding as the output, found {', '.join(asked.wanted):.200}.",
            "Ask for embedding, or leave outputs out.",
        )
    items: Sequence[Any] = asked.inputs[0].data
    try:
        texts = [item if isinstance(item, str) else item.decode() for item in items]
    except UnicodeDecodeError as error:
        raise BadRequest(f"Expected UTF-8 in every text, found: {error}.", "Send UTF-8.") from error
    if not 0 < len(texts) <= INPUTS_MAXIMUM:
        raise BadRequest(
            f"Expected 1 to {INPUTS_MAXIMUM} texts, found {len(texts)}.", "Send fewer at once."
        )
    return texts


def _embedding_answer(
    told: Mapping[str, Any], asked: InferRequest, body: bytes
) -> tuple[Headers, bytes]:
    try:
        rows = [base64.b64decode(row["embedding"]) for row in orjson.loads(body)["data"]]
    except (orjson.JSONDecodeError, KeyError, TypeError, binascii.Error) as error:
        raise FunctionError(
            f"Expected embeddings of the function, found {type(error).__name__}.", "See its log."
        ) from error
    shape = (len(rows), len(rows[0]) // _FLOAT_BYTES if rows else 0)
    return infer_answer(told, [Tensor("embedding", "FP32", shape, b"".join(rows))], asked)


def _function_answer(
    told: Mapping[str, Any], asked: InferRequest, body: bytes
) -> tuple[Headers, bytes]:
    try:
        returned = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise FunctionError(
            f"Expected JSON of the function, found: {error}.",
            'Return {"outputs": [{"name", "shape", "datatype", "data"}]}.',
        ) from error
    outputs = output_tensors(returned.get("outputs") if isinstance(returned, dict) else None)
    if isinstance(returned.get("parameters"), dict):
        told = {**told, "parameters": returned["parameters"]}
    return infer_answer(told, outputs, asked)


def _error_body(body: bytes) -> bytes:
    """What the function answered instead, as the error that clients of this protocol read."""
    error = wire_error_in(body)
    text = str(error) if error else body[:_ERROR_CHARACTERS_MAXIMUM].decode("utf-8", "replace")
    try:
        told = orjson.loads(body)
        if isinstance(told, dict) and isinstance(told.get("error"), str):
            text = told["error"]
    except orjson.JSONDecodeError:
        pass
    return orjson.dumps({"error": text.strip() or "The function gave no reason."})


def _generates(function: FunctionRecord) -> Unsupported:
    return Unsupported(
        f"Expected a function that embeds or runs code, found {_name(function)} with the task "
        f"{function.task}.",
        "Use /v1/chat/completions or /v1/completions.",
    )


def _metadata(function: FunctionRecord) -> dict[str, Any]:
    inputs: list[dict[str, Any]] = []
    outputs: list[dict[str, Any]] = []
    if function.task == "embed":
        inputs = [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
        outputs = [{"name": "embedding", "datatype": "FP32", "shape": [-1, -1]}]
    return {
        "name": _name(function),
        "versions": [str(function.generation)],
        "platform": f"stoker_{function.task}",
        "inputs": inputs,
        "outputs": outputs,
    }


def _is_ready(snapshot: Snapshot, function: FunctionRecord, now: float) -> bool:
    """Whether a request would be served: at zero too, since it then starts an instance."""
    failure = snapshot.failures.get(function.key)
    serving, _ = snapshot.replicas_of(function.key)
    retries = failure is None or (failure.retry_at is not None and failure.retry_at <= now)
    return retries or serving > 0


def _name(function: FunctionRecord) -> str:
    return function.name if function.namespace == DEFAULT_NAMESPACE else function.key
