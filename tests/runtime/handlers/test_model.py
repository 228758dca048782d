from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from harness import tiny_model
from harness.model_calls import CODEC, call, chat, events, post
from stoker.placement.errors import BadRequest, ContextOverflow, InstanceLost
from stoker.runtime.engine.echo import EchoEngine
from stoker.runtime.engine.protocol import FinishReason, SamplingParams
from stoker.runtime.engine.tokenizer import TextCodec
from stoker.runtime.handlers.http import Request
from stoker.runtime.handlers.model import EmbeddingHandler, GenerationHandler


@pytest.fixture
def engine() -> EchoEngine:
    return EchoEngine(context_tokens=128)


@pytest.fixture
def handler(engine: EchoEngine) -> GenerationHandler:
    return GenerationHandler(engine, CODEC, "chat")


def test_a_chat_is_templated_and_answered_as_openai_does(handler: GenerationHandler) -> None:
    response, payload = call(handler, chat(max_tokens=9))

    answer = json.loads(payload)
    assert response.status == 200
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "[user]hé", "refusal": None},
            "logprobs": None,
            "finish_reason": "length",
        }
    ]
    assert answer["usage"] == {"prompt_tokens": 24, "completion_tokens": 9, "total_tokens": 33}
    assert response.prefill is not None
    assert response.prefill[0] <= response.prefill[1]


def test_a_streamed_chat_has_role_first_reason_last_and_usage_when_asked(
    handler: GenerationHandler,
) -> None:
    response, payload = call(
        handler, chat(max_tokens=9, stream=True, stream_options={"include_usage": True})
    )

    assert dict(response.headers)["content-type"] == "text/event-stream"
    *chunks, last, usage = events(payload)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
    assert text == "[user]hé"
    assert last["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "length",
    }
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 9
    assert {chunk["id"] for chunk in chunks} == {usage["id"]}


def test_a_stop_string_is_never_sent_and_frees_the_engine(
    handler: GenerationHandler, engine: EchoEngine
) -> None:
    _, whole = call(handler, chat(stop=["llo["]))
    _, streamed = call(handler, chat(stop=["llo["], stream=True))

    choice = json.loads(whole)["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("[user]hé ", "stop")
    *chunks, last = events(streamed)
    assert "".join(c["choices"][0]["delta"]["content"] for c in chunks) == "[user]hé "
    assert last["choices"][0]["finish_reason"] == "stop"
    assert engine.active == 0


def test_without_max_tokens_a_chat_may_fill_the_context(handler: GenerationHandler) -> None:
    _, payload = call(handler, chat())

    assert json.loads(payload)["usage"]["total_tokens"] == 128


def test_a_prompt_over_the_context_is_refused_with_both_counts(handler: GenerationHandler) -> None:
    request = post("/v1/completions", {"prompt": "x" * 200})

    with pytest.raises(ContextOverflow) as caught:
        call(handler, request)

    assert caught.value.details == {"prompt_tokens": 200, "context_tokens": 128}


def test_several_prompts_get_a_choice_each(handler: GenerationHandler) -> None:
    _, payload = call(handler, post("/v1/completions", {"prompt": ["ab", "xyz"], "max_tokens": 3}))

    answer = json.loads(payload)
    assert [choice["text"] for choice in answer["choices"]] == ["aba", "xyz"]
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}


def test_a_streamed_completion_has_text(handler: GenerationHandler) -> None:
    body = {"prompt": "abc", "max_tokens": 4, "stream": True}

    _, payload = call(handler, post("/v1/completions", body))

    *chunks, last = events(payload)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "abca"
    assert last["choices"][0]["finish_reason"] == "length"


def test_plain_text_is_a_users_message_and_comes_back_as_text(handler: GenerationHandler) -> None:
    response, payload = call(handler, post("/", b"hi"))

    assert dict(response.headers)["content-type"].startswith("text/plain")
    assert payload.decode().startswith("[user]hi[assistant]")


def test_plain_text_is_a_prompt_to_a_completion_model(engine: EchoEngine) -> None:
    _, payload = call(GenerationHandler(engine, CODEC, "completion"), post("/", b"abc"))

    assert payload.decode().startswith("abcabc")


def test_json_on_any_path_goes_to_the_matching_route(handler: GenerationHandler) -> None:
    _, payload = call(handler, post("/anything", {"prompt": "ab", "max_tokens": 2}))

    assert json.loads(payload)["object"] == "text_completion"


@pytest.mark.parametrize(
    "request_",
    [
        Request("GET", "/v1/chat/completions", "", (), b""),
        post("/", b""),
        post("/", b"\xff\xfe"),
        post("/", {"neither": 1}),
        post("/v1/embeddings", {"input": "x"}),
        post("/v1/completions", {"prompt": [9999]}),
        post("/v1/completions", {"prompt": ""}),
        post("/v1/completions", {"prompt": "a", "logit_bias": {"9999": 1}}),
    ],
)
def test_what_the_model_cannot_serve_is_refused(
    handler: GenerationHandler, request_: Request
) -> None:
    with pytest.raises(BadRequest) as caught:
        call(handler, request_)

    assert caught.value.cause
    assert caught.value.remedy


def test_a_model_without_a_template_says_where_to_go_instead(engine: EchoEngine) -> None:
    plain = TextCodec(tiny_model.byte_tokenizer())

    with pytest.raises(BadRequest, match="/v1/completions"):
        call(GenerationHandler(engine, plain, "chat"), chat())


class _Breaking(EchoEngine):
    """Fails each request after three tokens."""

    def submit(
        self, tokens: Sequence[int], params: SamplingParams, answered: Sequence[int] = ()
    ) -> Any:
        return _BreakingStream(super().submit(tokens, params, answered))


class _BreakingStream:
    finish_reason: FinishReason | None = None
    logprobs: None = None

    def __init__(self, inner: Any) -> None:
        self._inner, self._left = inner, 3

    def __aiter__(self) -> AsyncIterator[int]:
        return self

    async def __anext__(self) -> int:
        self._left -= 1
        if self._left < 0:
            raise InstanceLost("It broke.", "Try again.")
        return int(await anext(self._inner))

    def cancel(self) -> None:
        self._inner.cancel()


def test_a_failure_in_mid_stream_is_an_error_event_and_nothing_after() -> None:
    handler = GenerationHandler(_Breaking(), CODEC, "chat")

    _, payload = call(handler, chat(stream=True))

    last = payload.decode().split("\n\n")[-2]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error == {
        "message": "It broke. Try again.",
        "type": "server_error",
        "param": None,
        "code": "instance_lost",
    }


def test_a_failure_before_the_first_token_is_a_status() -> None:
    handler = GenerationHandler(_Breaking(), CODEC, "chat")

    with pytest.raises(InstanceLost):
        call(handler, chat())


def test_a_client_that_stops_reading_frees_the_engine(
    handler: GenerationHandler, engine: EchoEngine
) -> None:
    async def scenario() -> None:
        response = await handler(chat(stream=True))
        assert not isinstance(response.body, bytes)
        await anext(response.body)
        assert engine.active == 1
        await response.body.aclose()
        assert engine.active == 0

    asyncio.run(scenario())


class _LengthEmbedder:
    async def embed(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        return [[float(len(text)), 0.5] for text in texts]


def test_embeddings_come_as_floats_or_base64() -> None:
    handler = EmbeddingHandler(_LengthEmbedder(), CODEC)
    body = {"model": "e", "input": ["abc", "de"]}

    _, floats = call(handler, post("/v1/embeddings", body))
    _, packed = call(handler, post("/v1/embeddings", body | {"encoding_format": "base64"}))

    answer = json.loads(floats)
    assert [item["embedding"] for item in answer["data"]] == [[3.0, 0.5], [2.0, 0.5]]
    assert [item["index"] for item in answer["data"]] == [0, 1]
    assert answer["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    first = base64.b64decode(json.loads(packed)["data"][0]["embedding"])
    assert struct.unpack("<2f", first) == (3.0, 0.5)


def test_plain_text_to_an_embedder_gives_its_vector() -> None:
    _, payload = call(EmbeddingHandler(_LengthEmbedder(), CODEC), post("/", b"abcd"))

    assert json.loads(payload) == [4.0, 0.5]


def test_vectors_of_another_size_are_refused_and_of_the_models_own_are_not() -> None:
    handler = EmbeddingHandler(_LengthEmbedder(), CODEC)

    own, _ = call(handler, post("/v1/embeddings", {"input": "abc", "dimensions": 2}))
    with pytest.raises(BadRequest, match="expected 2, the model's own size, found 3") as caught:
        call(handler, post("/v1/embeddings", {"input": "abc", "dimensions": 3}))

    assert own.status == 200
    assert caught.value.details["param"] == "dimensions"
