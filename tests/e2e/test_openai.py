"""What the OpenAI routes offer, on a real model by the real client, its bodies validated."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from harness import web
from harness.stack import Stack

MESSAGES: list[Any] = [{"role": "user", "content": "Name three animals."}]


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    url = f"{stack.url}/v1"
    with openai.OpenAI(base_url=url, api_key=stack.password, max_retries=0) as made:
        yield made


def whole(client: openai.OpenAI, model: str, **fields: Any) -> ChatCompletion:
    """The answer, whose JSON is what the client's own types say: it does not check by itself."""
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=MESSAGES, **{"max_tokens": 8, "temperature": 0, **fields}
    )
    return ChatCompletion.model_validate(json.loads(raw.text))


def test_choices_differ_by_seeds_made_of_the_requests_own(client: openai.OpenAI, chat: str) -> None:
    answers = [
        [c.message.content for c in whole(client, chat, n=3, temperature=1.2, seed=seed).choices]
        for seed in (1, 2)
    ]
    assert len(set(answers[0] + answers[1])) > 3
    assert answers[0] != answers[1]


def test_scores_are_log_probabilities_of_the_tokens_that_came(
    client: openai.OpenAI, chat: str
) -> None:
    answer = whole(client, chat, logprobs=True, top_logprobs=5)
    (choice,) = answer.choices
    assert choice.logprobs is not None
    content = choice.logprobs.content or []
    assert "".join(score.token for score in content) == choice.message.content
    for score in content:
        assert score.bytes == list(score.token.encode())
        # Scores in bfloat16 may be equal.
        assert score.token in [top.token for top in score.top_logprobs]
        assert score.logprob == score.top_logprobs[0].logprob
        assert sum(math.exp(top.logprob) for top in score.top_logprobs) <= 1.0001


def test_biases_and_penalties_change_what_comes(client: openai.OpenAI, chat: str) -> None:
    plain = whole(client, chat, max_tokens=40)
    text = plain.choices[0].message.content or ""
    penalized = whole(client, chat, max_tokens=40, frequency_penalty=2, presence_penalty=2)
    assert penalized.choices[0].message.content != text
    first = client.completions.create(model=chat, prompt="The sky is", max_tokens=1, logprobs=1)
    assert first.choices[0].logprobs is not None
    forced = whole(client, chat, max_tokens=3, logit_bias={"17": 100}, logprobs=True)
    assert forced.choices[0].logprobs is not None
    assert len({score.token for score in forced.choices[0].logprobs.content or []}) == 1


def test_a_stream_of_two_choices_ends_with_the_usage_of_both(
    client: openai.OpenAI, chat: str
) -> None:
    body = {"model": chat, "messages": MESSAGES, "max_tokens": 6, "n": 2, "stream": True}
    body |= {"stream_options": {"include_usage": True}, "logprobs": True, "seed": 1}
    url = f"{str(client.base_url).rstrip('/')}/chat/completions"
    connection, path = web.connect(url)
    connection.request("POST", path, json.dumps(body), web.bearer(client.api_key))
    *events, done = web.events(connection.getresponse())
    connection.close()
    assert done == "[DONE]"
    chunks = [ChatCompletionChunk.model_validate_json(event) for event in events]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12
    ends = [c.choices[0].index for c in chunks[:-1] if c.choices[0].finish_reason]
    assert sorted(ends) == [0, 1]
    assert [c.choices[0].delta.role for c in chunks[:2]] == ["assistant", "assistant"]


def test_a_completion_echoes_its_prompt_and_stops_where_it_is_told(
    client: openai.OpenAI, chat: str
) -> None:
    raw = client.completions.with_raw_response.create(
        model=chat,
        prompt=["One, two, three,", "A, B, C,"],
        max_tokens=12,
        temperature=0,
        echo=True,
        stop=[","],
    )
    answer = Completion.model_validate(json.loads(raw.text))
    assert [c.text.startswith(p) for c, p in zip(answer.choices, ("One", "A,"), strict=True)] == [
        True,
        True,
    ]
    assert {c.finish_reason for c in answer.choices} == {"stop"}


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "bad_request", "tools"),
        ({"response_format": {"type": "json_object"}}, "bad_request", "response_format"),
        ({"n": 10**9}, "bad_request", "n"),
        ({"top_logprobs": 5}, "bad_request", "top_logprobs"),
        ({"logit_bias": {"99999999": 1}}, "bad_request", "logit_bias"),
        ({"messages": [{"role": "user", "content": "a " * 9000}]}, "context_length_exceeded", None),
    ],
)
def test_what_cannot_be_is_an_error_that_names_it(
    client: openai.OpenAI, chat: str, fields: dict[str, Any], code: str, param: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": chat, "messages": MESSAGES, **fields})
    assert (caught.value.code, caught.value.param) == (code, param)
    if code == "context_length_exceeded":
        counts = [int(word) for word in caught.value.message.split() if word.isdecimal()]
        assert max(counts) > 9000
        assert min(counts) <= 8192
    assert caught.value.request_id


def test_embeddings_are_the_same_in_both_encodings(client: openai.OpenAI, stack: Stack) -> None:
    annotations = {"stoker/model": "s3://models/all-minilm-l6-v2", "stoker/task": "embed"}
    assert stack.deploy("vectors", annotations).status == 202
    texts = ["one text", "and another"]
    packed = client.embeddings.create(model="vectors", input=texts)
    raw = client.embeddings.with_raw_response.create(
        model="vectors", input=texts, encoding_format="float", dimensions=384
    )
    floats = CreateEmbeddingResponse.model_validate(json.loads(raw.text))
    for a, b in zip(packed.data, floats.data, strict=True):
        assert a.embedding == pytest.approx(b.embedding, abs=1e-6)
    with pytest.raises(openai.BadRequestError, match="the model's own size") as caught:
        client.embeddings.create(model="vectors", input=texts, dimensions=100)
    assert caught.value.param == "dimensions"
    stack.remove("vectors")
