"""Several answers at once, log probabilities and echoes, on an engine that echoes its prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from harness.model_calls import CODEC, call, chat, events, post
from stoker.runtime.engine.echo import EchoEngine
from stoker.runtime.engine.protocol import SamplingParams
from stoker.runtime.handlers.model import GenerationHandler


@pytest.fixture
def engine() -> EchoEngine:
    return EchoEngine(context_tokens=128)


@pytest.fixture
def handler(engine: EchoEngine) -> GenerationHandler:
    return GenerationHandler(engine, CODEC, "chat")


def test_several_choices_are_counted_with_one_prompt(handler: GenerationHandler) -> None:
    _, payload = call(handler, chat(max_tokens=4, n=3))

    answer = json.loads(payload)
    ChatCompletion.model_validate(answer)
    assert [c["index"] for c in answer["choices"]] == [0, 1, 2]
    assert {c["message"]["content"] for c in answer["choices"]} == {"[use"}
    assert answer["usage"] == {"prompt_tokens": 24, "completion_tokens": 12, "total_tokens": 36}


def test_each_choice_draws_with_a_seed_of_its_own(engine: EchoEngine) -> None:
    seeds = []

    class Noting(EchoEngine):
        def submit(
            self, tokens: Sequence[int], params: SamplingParams, answered: Sequence[int] = ()
        ) -> Any:
            seeds.append(params.seed)
            return super().submit(tokens, params, answered)

    call(GenerationHandler(Noting(), CODEC, "chat"), chat(max_tokens=1, n=3, seed=2**63 - 1))

    assert seeds[0] == 2**63 - 1
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**64 for seed in seeds)


@pytest.mark.parametrize("choices", [1, 3])
def test_a_stream_of_several_choices_tells_each_from_the_others(
    handler: GenerationHandler, engine: EchoEngine, choices: int
) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    _, payload = call(handler, chat(max_tokens=5, n=choices, **options))

    *chunks, usage = events(payload)
    texts = dict.fromkeys(range(choices), "")
    reasons: dict[int, str] = {}
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        if choice["finish_reason"]:
            reasons[choice["index"]] = choice["finish_reason"]
    assert texts == dict.fromkeys(range(choices), "[user")
    assert reasons == dict.fromkeys(range(choices), "length")
    assert usage["usage"]["completion_tokens"] == 5 * choices
    assert engine.active == 0


def test_several_prompts_stream_side_by_side(handler: GenerationHandler) -> None:
    body = {"prompt": ["ab", "xyz"], "max_tokens": 3, "stream": True}

    _, payload = call(handler, post("/v1/completions", body))

    texts = {0: "", 1: ""}
    for chunk in events(payload):
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == {0: "aba", 1: "xyz"}


@pytest.mark.parametrize("stream", [False, True])
def test_an_echoed_prompt_comes_before_its_answer(
    handler: GenerationHandler, *, stream: bool
) -> None:
    body = {"prompt": ["ab", [65, 66]], "max_tokens": 2, "echo": True, "stream": stream}
    decoded = CODEC.decode([65, 66])

    _, payload = call(handler, post("/v1/completions", body))

    texts = {0: "", 1: ""}
    for answer in events(payload) if stream else [json.loads(payload)]:
        for choice in answer["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == {0: "abab", 1: decoded * 2}


@pytest.mark.parametrize("stream", [False, True])
def test_each_token_comes_with_its_score_when_asked(
    handler: GenerationHandler, *, stream: bool
) -> None:
    request = chat(max_tokens=9, logprobs=True, top_logprobs=2, stream=stream)

    _, payload = call(handler, request)

    answers = events(payload) if stream else [json.loads(payload)]
    model = ChatCompletionChunk if stream else ChatCompletion
    scores = []
    for answer in answers:
        model.model_validate(answer)
        scores += (answer["choices"][0]["logprobs"] or {"content": []})["content"]
    # The last two tokens are the two bytes of one character.
    assert b"".join(bytes(s["bytes"]) for s in scores).decode() == "[user]hé"
    assert [s["token"] for s in scores][:3] == ["[", "u", "s"]
    assert all(s["logprob"] == 0.0 for s in scores)
    assert scores[0]["top_logprobs"] == [{"token": "[", "logprob": 0.0, "bytes": [91]}]


def test_scores_of_a_completion_have_offsets_into_its_text(handler: GenerationHandler) -> None:
    body = {"prompt": "hé!", "max_tokens": 5, "logprobs": 1}

    _, payload = call(handler, post("/v1/completions", body))

    answer = json.loads(payload)
    Completion.model_validate(answer)
    logprobs = answer["choices"][0]["logprobs"]
    assert answer["choices"][0]["text"] == "hé!h"
    assert logprobs["text_offset"] == [0, 1, 1, 2, 3]
    assert logprobs["token_logprobs"] == [0.0] * 5
    assert logprobs["top_logprobs"][0] == {"h": 0.0}


def test_scores_of_a_stop_string_are_not_told(handler: GenerationHandler) -> None:
    _, payload = call(handler, chat(stop=["llo["], logprobs=True))

    content = json.loads(payload)["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(s["bytes"]) for s in content).decode() == "[user]hé "
