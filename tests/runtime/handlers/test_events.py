"""What a function gets of an event, and what becomes of its answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest

from stoker.placement.cloud_event import BATCH_TYPE, STRUCTURED_TYPE
from stoker.placement.errors import BadRequest, FunctionError
from stoker.runtime.handlers.events import (
    EventHandler,
    Form,
    as_decoded,
    as_prompt,
    as_sent,
)
from stoker.runtime.handlers.http import Headers, Request, Response

REQUIRED = {"id": "7", "source": "/orders", "type": "order.made", "specversion": "1.0"}
BINARY: Headers = tuple((f"ce-{name}", value) for name, value in REQUIRED.items())
PREFERS: Headers = (("prefer", "respond-async, Reply"),)


class Function:
    """A handler that keeps what it got and answers with `response`."""

    def __init__(self, response: Response | None = None) -> None:
        self.got: list[Request] = []
        self.response = response or Response(200, (("Content-Type", "text/plain"),), b"OK")

    async def __call__(self, request: Request) -> Response:
        self.got.append(request)
        return self.response


def call(
    handler: Callable[[Request], Awaitable[Response]],
    headers: Headers,
    body: bytes = b"",
    method: str = "POST",
) -> Response:
    async def run() -> Response:
        return await handler(Request(method, "/x", "q=1", headers, body))

    return asyncio.run(run())


def structured(body: Any = None) -> tuple[Headers, bytes]:
    fields = REQUIRED | ({} if body is None else {"data": body})
    return (("content-type", STRUCTURED_TYPE),), json.dumps(fields).encode()


def batch(*bodies: Any) -> tuple[Headers, bytes]:
    events = [REQUIRED | {"id": str(n), "data": body} for n, body in enumerate(bodies)]
    return (("content-type", BATCH_TYPE),), json.dumps(events).encode()


def event_reply(status: int = 200) -> Response:
    headers = (*((f"Ce-{n.title()}", v) for n, v in REQUIRED.items()), ("Content-Type", "a/b"))
    return Response(status, headers, b"reply")


def test_every_mode_gives_a_plain_function_data_and_headers() -> None:
    function = Function()
    handler = EventHandler(function)

    call(handler, (*BINARY, ("content-type", "application/json"), ("x-own", "1")), b'{"n":1}')
    call(handler, *structured({"n": 1}))
    call(handler, *batch({"n": 1}))

    for request in function.got:
        assert (request.body, request.query) == (b'{"n":1}', "q=1")
        assert request.header("content-type") == "application/json"
        assert request.header("content-length") == "7"
        assert request.header("ce-type") == "order.made"
        assert request.event is not None
        assert request.event.type == "order.made"
    assert function.got[0].header("x-own") == "1"


def test_what_is_no_event_passes_unchanged() -> None:
    function = Function()
    handler = EventHandler(function)
    plain: Headers = (*BINARY[1:], ("content-type", "application/json"))

    call(handler, plain, b"{}")
    call(handler, (("content-type", STRUCTURED_TYPE),), b"no event", method="PUT")
    call(handler, (), method="OPTIONS")

    assert [request.event for request in function.got] == [None] * 3
    assert function.got[0] == Request("POST", "/x", "q=1", plain, b"{}")


def test_an_event_that_cannot_be_read_is_refused_before_the_function_sees_it() -> None:
    function = Function()
    for headers, body in (
        ((*BINARY, ("ce-subject", "%FF")), b""),
        ((("content-type", STRUCTURED_TYPE),), b"{"),
        ((("content-type", BATCH_TYPE),), b'[{"id": "7"}]'),
    ):
        with pytest.raises(BadRequest):
            call(EventHandler(function), headers, body)
    assert function.got == []


@pytest.mark.parametrize(
    ("data", "content_type", "body"),
    [
        ("Hello", "text/plain; charset=utf-8", b"Hello"),
        ({"prompt": "Hello"}, "application/json", b'{"prompt":"Hello"}'),
    ],
)
def test_a_model_gets_a_text_as_text(data: Any, content_type: str, body: bytes) -> None:
    function = Function()

    call(EventHandler(function, as_prompt), *structured(data))

    assert (function.got[0].header("content-type"), function.got[0].body) == (content_type, body)


@pytest.mark.parametrize("form", [as_sent, as_decoded])
def test_an_sdk_gets_a_structured_event_without_headers_that_might_contradict(form: Form) -> None:
    function = Function()
    _, body = structured({"n": 1})
    mixed: Headers = (("content-type", "Application/CloudEvents+JSON"), *BINARY)

    call(EventHandler(function, form), mixed, body)

    (request,) = function.got
    assert (request.header("content-type"), request.body) == (STRUCTURED_TYPE, body)
    assert not any(name.startswith("ce-") for name, _ in request.headers)


def test_an_sdk_that_decodes_nothing_gets_encoded_headers_in_structured_mode() -> None:
    function = Function()
    handler = EventHandler(function, as_decoded)
    kind = ("content-type", "application/json")

    call(handler, (*BINARY, kind), b"{}")
    call(handler, (*BINARY, kind, ("ce-subject", "a%20b")), b"{}")

    plain, decoded = function.got
    assert (plain.header("ce-id"), plain.header("content-type")) == ("7", "application/json")
    assert json.loads(decoded.body)["subject"] == "a b"
    assert json.loads(decoded.body)["data_base64"] == "e30="


def test_without_a_preference_the_answer_is_left_alone() -> None:
    function = Function()

    assert call(EventHandler(function), BINARY) is function.response
    assert call(EventHandler(function, source="/me"), BINARY) is function.response


def test_a_reply_is_an_event_or_nothing() -> None:
    silent = call(EventHandler(Function()), (*BINARY, *PREFERS))
    replied = call(EventHandler(Function(event_reply(201))), (*BINARY, *PREFERS))
    failed = call(EventHandler(Function(Response(503, (), b"later"))), (*BINARY, *PREFERS))

    assert (silent.status, silent.headers, silent.body) == (202, (), b"")
    assert (replied.status, replied.body) == (200, b"reply")
    assert ("Ce-Type", "order.made") in replied.headers
    assert (failed.status, failed.body) == (503, b"later")


def test_a_models_answer_is_wrapped_in_the_mode_of_the_request() -> None:
    handler = EventHandler(Function(), as_prompt, source="/function/chat.fn")

    binary = call(handler, (*BINARY, *PREFERS, ("content-type", "text/plain")), b"hi")
    headers, body = structured("hi")
    as_json = call(handler, (*headers, *PREFERS), body)

    got = dict(binary.headers)
    assert (binary.status, binary.body, got["content-type"]) == (200, b"OK", "text/plain")
    assert (got["ce-type"], got["ce-source"]) == ("stoker.reply", "/function/chat.fn")
    assert got["ce-causationid"] == "7"
    fields = json.loads(as_json.body if isinstance(as_json.body, bytes) else b"")
    assert dict(as_json.headers)["content-type"] == STRUCTURED_TYPE
    assert (fields["data"], fields["id"]) == ("OK", got["ce-id"])


def test_a_reply_that_claims_to_be_an_event_and_is_none_is_the_functions_fault() -> None:
    headers = (*BINARY[:-1], ("ce-specversion", "9"))
    with pytest.raises(FunctionError, match="version"):
        call(EventHandler(Function(Response(200, headers, b""))), (*BINARY, *PREFERS))


def test_a_batch_gives_one_call_per_event_and_a_batch_of_the_replies() -> None:
    function = Function(event_reply())

    replied = call(EventHandler(function), *batch("a", "b"))
    silent = call(EventHandler(Function()), *batch("a", "b"))
    empty = call(EventHandler(Function()), *batch())

    assert [request.header("ce-id") for request in function.got] == ["0", "1"]
    assert replied.headers == (("content-type", BATCH_TYPE),)
    assert isinstance(replied.body, bytes)
    assert [fields["type"] for fields in json.loads(replied.body)] == ["order.made"] * 2
    assert (silent.status, silent.body) == (202, b"")
    assert empty.status == 202


def test_the_first_failure_ends_a_batch() -> None:
    function = Function(Response(500, (), b"broken"))

    answer = call(EventHandler(function), *batch("a", "b"))

    assert (answer.status, answer.body, len(function.got)) == (500, b"broken", 1)


def test_a_streamed_answer_is_drawn_to_its_end_and_closed() -> None:
    ended = []

    async def pieces() -> AsyncGenerator[bytes, None]:
        try:
            yield b"a"
            yield b"b"
        finally:
            ended.append(True)

    handler = EventHandler(Function(Response(200, (), pieces())), source="/me")

    assert call(handler, (*BINARY, *PREFERS)).body == b"ab"
    assert ended == [True]


def test_a_sender_that_asks_may_send_and_only_event_functions_do_not_see_options() -> None:
    asks: Headers = (("webhook-request-origin", "sender.example"), ("webhook-request-rate", "9"))
    function = Function()

    consent = call(EventHandler(function), asks, method="OPTIONS")
    only = call(EventHandler(function, only_events=True), (), method="OPTIONS")

    assert dict(consent.headers) == {
        "allow": "POST",
        "webhook-allowed-origin": "sender.example",
        "webhook-allowed-rate": "*",
    }
    assert (only.status, only.headers) == (200, (("allow", "POST"),))
    assert function.got == []
