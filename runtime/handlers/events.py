"""CloudEvents for functions of every kind, in binary, structured and batch mode.

What a function gets of an event is its kind's `Form`:

    as_binary     data as the body, attributes as ce- headers: functions without an SDK of their own
    as_prompt     likewise, and a JSON text as plain text: models
    as_sent       what was sent, in one of the two ways that every SDK reads
    as_decoded    likewise, for an SDK that decodes no header

Each event of a batch is a call of its own, one after the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace

import orjson

from stoker.placement.cloud_event import (
    BATCH_TYPE,
    PREFIX,
    STRUCTURED_TYPE,
    CloudEvent,
    Mode,
    binary_headers,
    is_json,
    mode_of,
    read_batch,
    read_event,
    to_json,
    to_json_batch,
)
from stoker.placement.errors import BadRequest, FunctionError
from stoker.runtime.handlers.http import Handler, Headers, Request, Response

Form = Callable[[Request, CloudEvent, Mode], Request]

REPLY_TYPE = "stoker.reply"
ANSWER_BYTES_MAXIMUM = 64 << 20
_OF_BODY = frozenset({"content-type", "content-length", "transfer-encoding", "content-encoding"})


def as_binary(request: Request, event: CloudEvent, mode: Mode) -> Request:  # noqa: ARG001
    """The event in binary mode, however it came."""
    return _carrying(request, event, binary_headers(event), event.data)


def as_prompt(request: Request, event: CloudEvent, mode: Mode) -> Request:
    """The event's data as the body; a text that JSON wraps is that text."""
    text = _text(event) if is_json(event.content_type) else None
    if text is not None:
        event = CloudEvent(event.attributes, "text/plain; charset=utf-8", text.encode())
    return as_binary(request, event, mode)


def as_sent(request: Request, event: CloudEvent, mode: Mode) -> Request:
    """The event in its own mode; one of a batch in structured mode."""
    if mode == "binary":
        return as_binary(request, event, mode)
    body = request.body if mode == "structured" else to_json(event)
    return _carrying(request, event, (("content-type", STRUCTURED_TYPE),), body)


def as_decoded(request: Request, event: CloudEvent, mode: Mode) -> Request:
    """As it was sent, unless its headers need decoding: then in structured mode."""
    if mode == "binary" and any("%" in value for _, value in binary_headers(event)):
        body = to_json(event, as_base64=True)
        return _carrying(request, event, (("content-type", STRUCTURED_TYPE),), body)
    return as_sent(request, event, mode)


class EventHandler:
    """Calls `handler` for each event in the `form` that it takes; other requests pass unchanged.

    With a `source`, any answer can be wrapped into an event from there: that of a model, for code
    would send events in circles without wanting to.
    A function that takes `only_events` does not see OPTIONS; no function sees the one by which a
    sender of events asks whether it may send.
    """

    def __init__(
        self,
        handler: Handler,
        form: Form = as_binary,
        *,
        source: str | None = None,
        only_events: bool = False,
    ) -> None:
        self._handler = handler
        self._source = source
        self._form = form
        self._only_events = only_events

    async def __call__(self, request: Request) -> Response:
        origin = request.header("webhook-request-origin")
        if request.method == "OPTIONS" and (origin or self._only_events):
            return _consent(origin)
        mode = mode_of(request.headers) if request.method == "POST" else None
        if mode is None:
            return await self._handler(request)
        if mode == "batch":
            return await self._batch(request)
        event = read_event(request.headers, request.body)
        response = await self._handler(self._form(request, event, mode))
        if not _prefers_reply(request) or not 200 <= response.status < 300:
            return response
        response = replace(response, body=await _whole(response))
        reply = self._reply(event, response)
        if reply is None:
            # A router takes a body that is no event for a failure, and sends the event again.
            return replace(response, status=202, headers=_without_body(response.headers), body=b"")
        if _mode(response) is not None:
            return replace(response, status=200)
        headers = _without_body(response.headers)
        if mode == "structured":
            headers, body = (*headers, ("content-type", STRUCTURED_TYPE)), to_json(reply)
        else:
            headers, body = (*headers, *binary_headers(reply)), reply.data
        return replace(response, status=200, headers=headers, body=body)

    async def _batch(self, request: Request) -> Response:
        """All replies, once every event was taken; the first failure ends it, to be sent again."""
        replies: list[CloudEvent] = []
        size = 0
        for event in read_batch(request.headers, request.body):
            response = await self._handler(self._form(request, event, "batch"))
            response = replace(response, body=await _whole(response))
            if not 200 <= response.status < 300:
                return response
            if (reply := self._reply(event, response)) is not None:
                replies.append(reply)
                size += len(reply.data)
                _check_size(size)
        if not replies:
            return Response(202)
        return Response(200, (("content-type", BATCH_TYPE),), to_json_batch(replies))

    def _reply(self, event: CloudEvent, response: Response) -> CloudEvent | None:
        """The event that the whole `response` is, or that it is wrapped into."""
        assert isinstance(response.body, bytes)
        headers = _lowered(response.headers)
        if _mode(response) in ("binary", "structured"):
            try:
                return read_event(headers, response.body)
            except BadRequest as error:
                raise FunctionError(
                    f"The function's reply is no CloudEvent. {error.cause}",
                    "Correct its attributes, or return no ce- headers.",
                ) from error
        if self._source is None:
            return None
        # The same for an event that is sent again, so that its receiver can tell.
        named = f"{self._source} {event.source} {event.id}".encode("utf-8", "surrogatepass")
        attributes = {
            "specversion": "1.0",
            "id": hashlib.sha256(named).hexdigest()[:32],
            "source": self._source,
            "type": REPLY_TYPE,
            "causationid": event.id,
        }
        content_type = next((value for name, value in headers if name == "content-type"), "")
        return CloudEvent(attributes, content_type, response.body)


def _text(event: CloudEvent) -> str | None:
    """The text that the data is as JSON, None if it is anything else."""
    try:
        value = orjson.loads(event.data)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, str) else None


def _consent(origin: str) -> Response:
    """Any sender may send, as often as it likes: who calls too often gets 429."""
    headers: Headers = (("allow", "POST"),)
    if origin:
        headers += (("webhook-allowed-origin", origin), ("webhook-allowed-rate", "*"))
    return Response(200, headers)


def _carrying(request: Request, event: CloudEvent, headers: Headers, body: bytes) -> Request:
    others = tuple(
        (name, value)
        for name, value in request.headers
        if name not in _OF_BODY and not name.startswith(PREFIX)
    )
    length = ("content-length", str(len(body)))
    return replace(request, headers=(*others, *headers, length), body=body, event=event)


def _prefers_reply(request: Request) -> bool:
    return any(
        part.partition(";")[0].strip().lower() == "reply"
        for name, value in request.headers
        if name == "prefer"
        for part in value.split(",")
    )


async def _whole(response: Response) -> bytes:
    """The body at once; FunctionError if it is too long for that."""
    if isinstance(response.body, bytes):
        return response.body
    parts: list[bytes] = []
    size = 0
    async with aclosing(response.body) as pieces:
        async for piece in pieces:
            size += len(piece)
            _check_size(size)
            parts.append(piece)
    return b"".join(parts)


def _check_size(size: int) -> None:
    if size > ANSWER_BYTES_MAXIMUM:
        raise FunctionError(
            f"Expected a reply of at most {ANSWER_BYTES_MAXIMUM} bytes, found more.",
            "Reply with less, or put the data into object storage.",
        )


def _mode(response: Response) -> Mode | None:
    return mode_of(_lowered(response.headers))


def _lowered(headers: Headers) -> Headers:
    return tuple((name.lower(), value) for name, value in headers)


def _without_body(headers: Headers) -> Headers:
    return tuple(pair for pair in headers if pair[0].lower() not in _OF_BODY)
