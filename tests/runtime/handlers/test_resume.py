"""A stream that breaks anywhere goes on elsewhere as if nothing had happened."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from harness import tiny_model
from stoker.gateway.stream_log import LoggedEvents
from stoker.placement.errors import BadRequest
from stoker.placement.resumable import RESUMABLE_HEADER, RESUME_HEADER, StreamLog
from stoker.runtime.engine.echo import EchoEngine
from stoker.runtime.engine.protocol import Engine
from stoker.runtime.engine.tokenizer import TextCodec
from stoker.runtime.engine.transformers_engine import TransformersEngine
from stoker.runtime.handlers.http import Request
from stoker.runtime.handlers.model import GenerationHandler
from stoker.runtime.handlers.openai_answers import DONE

CODEC = TextCodec(tiny_model.byte_tokenizer(), tiny_model.CHAT_TEMPLATE, {"eos_token": "<end>"})
MESSAGES = [{"role": "user", "content": "hé €llo"}]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "greedy": ("/v1/chat/completions", {"max_tokens": 12, "temperature": 0}),
    "drawn": ("/v1/chat/completions", {"max_tokens": 12, "temperature": 1.1, "seed": 5}),
    "no seed": ("/v1/chat/completions", {"max_tokens": 12, "temperature": 1.1}),
    "two answers": ("/v1/chat/completions", {"max_tokens": 8, "n": 2, "seed": 3}),
    "scored": ("/v1/chat/completions", {"max_tokens": 8, "logprobs": True, "top_logprobs": 2}),
    "penalized": (
        "/v1/chat/completions",
        {"max_tokens": 14, "temperature": 0, "presence_penalty": 1.5, "frequency_penalty": 0.5},
    ),
    "whole context": ("/v1/completions", {"prompt": "abc" * 36, "temperature": 0}),
    "echoed": ("/v1/completions", {"prompt": "hé llo", "max_tokens": 6, "echo": True}),
    "scored text": ("/v1/completions", {"prompt": ["ab", "cd"], "max_tokens": 5, "logprobs": 1}),
}


@pytest.fixture(scope="module", params=["transformers", "echo"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    made: Engine = EchoEngine(context_tokens=128)
    if request.param == "transformers":
        transformers = TransformersEngine(
            tiny_model.llama(), end_tokens=[tiny_model.END], context_tokens=128, concurrency=4
        )
        transformers.start()
        made = transformers
    yield made
    made.close()


def _request(path: str, fields: dict[str, Any]) -> Request:
    body = {"model": "m", "stream": True, "stream_options": {"include_usage": True}, **fields}
    if "chat" in path:
        body["messages"] = MESSAGES
    headers = (("content-type", "application/json"), (RESUMABLE_HEADER, "1"))
    return Request("POST", path, "", headers, json.dumps(body).encode())


def _resumed(request: Request, log: StreamLog) -> Request:
    headers = (("content-type", "application/json"), (RESUME_HEADER, "1"))
    return replace(request, headers=headers, body=log.envelope(request.body))


async def _read(handler: GenerationHandler, request: Request, log: StreamLog, most: int) -> bytes:
    """The first `most` chunks as a client gets them, with `log` noted; then the stream breaks."""
    response = await handler(request)
    assert not isinstance(response.body, bytes)
    events, told, count = LoggedEvents(log), b"", 0
    async with aclosing(response.body) as body:
        async for chunk in body:
            told += events.feed(chunk)
            count += 1
            if count == most:
                break
    return told


def _close(number: str) -> Any:
    """A prompt is summed up in another order than one token after the other."""
    return pytest.approx(float(number), abs=0.01)


def _said(payload: bytes, read: Callable[[str], Any] = float) -> list[Any]:
    """What of each event must be as in the undisturbed stream; of two answers in any order."""
    events = [e.removeprefix("data: ") for e in payload.decode().split("\n\n")]
    assert events.pop() == ""
    assert events.pop() == "[DONE]"
    said = [json.loads(event, parse_float=read) for event in events]
    assert len({(event["id"], event["created"]) for event in said}) == 1
    by_answer: dict[int, list[Any]] = {}
    for event in said:
        answer = event["choices"][0]["index"] if event["choices"] else -1
        by_answer.setdefault(answer, []).append(event["choices"] or event["usage"])
    return [by_answer[answer] for answer in sorted(by_answer)]


@pytest.mark.parametrize("case", CASES)
def test_whatever_was_told_before_the_break_the_rest_is_the_same(engine: Engine, case: str) -> None:
    request = _request(*CASES[case])
    handler = GenerationHandler(engine, CODEC, "chat")

    async def scenario() -> None:
        log = StreamLog()
        whole = await _read(handler, request, log, -1)
        # Without a seed of the client's, the worker's own is in the log: the same for all.
        seeded = replace(request, body=_with_seed(request.body, log.seed))
        whole = await _read(handler, seeded, StreamLog(), -1)
        assert b": stoker" not in whole
        breaks = whole.count(b"\n\n")
        for most in range(1, breaks):
            log = StreamLog()
            told = await _read(handler, seeded, log, most)
            if not told.endswith(DONE):
                told += await _read(handler, _resumed(seeded, log), log, -1)
            assert _said(told) == _said(whole, _close), f"after {most} chunks"

    asyncio.run(scenario())


def _with_seed(body: bytes, seed: int) -> bytes:
    fields = json.loads(body)
    return json.dumps({"seed": seed % 2**63, **fields}).encode()


def test_a_stream_breaks_many_times_and_no_token_is_lost_or_told_twice(engine: Engine) -> None:
    fields = {"max_tokens": 30, "temperature": 1.2, "seed": 9}
    request = _request("/v1/chat/completions", fields)
    handler = GenerationHandler(engine, CODEC, "chat")

    async def scenario() -> None:
        whole = await _read(handler, request, StreamLog(), -1)
        log = StreamLog()
        told = await _read(handler, request, log, 1)
        while not told.endswith(DONE):
            told += await _read(handler, _resumed(request, log), log, 2)
        assert _said(told) == _said(whole, _close)

    asyncio.run(scenario())


def test_a_stop_string_across_the_break_is_never_sent(engine: Engine) -> None:
    handler = GenerationHandler(EchoEngine(context_tokens=128), CODEC, "chat")
    request = _request("/v1/chat/completions", {"stop": ["€llo["]})

    async def scenario() -> None:
        whole = await _read(handler, request, StreamLog(), -1)
        for most in range(1, whole.count(b"\n\n")):
            log = StreamLog()
            told = await _read(handler, request, log, most)
            if not told.endswith(DONE):
                told += await _read(handler, _resumed(request, log), log, -1)
            assert _said(told) == _said(whole, _close)

    asyncio.run(scenario())


def test_what_prepares_the_rest_answers_nothing_and_changes_nothing(engine: Engine) -> None:
    request = _request("/v1/chat/completions", {"max_tokens": 20, "temperature": 0})
    handler = GenerationHandler(engine, CODEC, "chat")

    async def scenario() -> None:
        whole = await _read(handler, request, StreamLog(), -1)
        log = StreamLog()
        told = await _read(handler, request, log, 4)
        preparing = log.envelope(request.body, prepares=True)
        prepared = await handler(replace(_resumed(request, log), body=preparing))
        assert (prepared.status, prepared.body) == (204, b"")
        told += await _read(handler, _resumed(request, log), log, -1)
        assert _said(told) == _said(whole, _close)

    asyncio.run(scenario())


def test_what_no_gateway_sends_is_refused(engine: Engine) -> None:
    handler = GenerationHandler(engine, CODEC, "chat")
    headers = (("content-type", "application/json"), (RESUME_HEADER, "1"))

    async def scenario() -> None:
        for body in (b"", b"[]", b"{}", b'{"answer_id":1,"told":[[1]]}'):
            with pytest.raises(BadRequest):
                await handler(Request("POST", "/v1/chat/completions", "", headers, body))

    asyncio.run(scenario())
