from __future__ import annotations

import time
from typing import Any

import pytest

from stoker.placement.errors import BadJson, BadRequest
from stoker.placement.openai_requests import (
    chat_request,
    completion_request,
    embedding_request,
    parse_body,
)

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("param", "change"),
    [
        ("messages", {"messages": "hello"}),
        ("messages", {"messages": []}),
        ("messages", {"messages": None}),
        ("messages[0]", {"messages": ["hello"]}),
        ("messages[0].role", {"messages": [{"role": "pirate", "content": "x"}]}),
        ("messages[0].content", {"messages": [{"role": "user", "content": 3}]}),
        (
            "messages[0].content[0]",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        ),
        ("n", {"n": 129}),
        ("n", {"n": 10**9}),
        ("n", {"n": "1"}),
        ("n", {"n": 0}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_tokens", {"max_tokens": 1.5}),
        ("max_tokens", {"max_tokens": True}),
        ("max_completion_tokens", {"max_completion_tokens": "many"}),
        ("temperature", {"temperature": -0.1}),
        ("temperature", {"temperature": 2.1}),
        ("temperature", {"temperature": "hot"}),
        ("top_p", {"top_p": 1.1}),
        ("seed", {"seed": "s"}),
        ("seed", {"seed": 2**70}),
        ("stop", {"stop": ["a", "b", "c", "d", "e"]}),
        ("stop", {"stop": [""]}),
        ("stop", {"stop": 5}),
        ("stream", {"stream": "yes"}),
        ("stream_options", {"stream_options": [1]}),
        ("include_usage", {"stream_options": {"include_usage": 1}}),
        ("frequency_penalty", {"frequency_penalty": 2.5}),
        ("presence_penalty", {"presence_penalty": -3}),
        ("presence_penalty", {"presence_penalty": True}),
        ("logprobs", {"logprobs": 3}),
        ("top_logprobs", {"top_logprobs": 2}),
        ("top_logprobs", {"logprobs": True, "top_logprobs": 21}),
        ("top_logprobs", {"logprobs": True, "top_logprobs": 10**9}),
        ("logit_bias", {"logit_bias": [1]}),
        ("logit_bias", {"logit_bias": {"x": 1}}),
        ("logit_bias", {"logit_bias": {"-1": 1}}),
        ("logit_bias", {"logit_bias": {"7": 101}}),
        ("logit_bias", {"logit_bias": {"7": "1"}}),
        ("logit_bias", {"logit_bias": {"9" * 40: 1}}),
        ("logit_bias", {"logit_bias": {str(i): 1 for i in range(1025)}}),
        ("stop", {"stop": "x" * 257}),
        ("tools", {"tools": [{"type": "function"}]}),
        ("functions", {"functions": [{"name": "f"}]}),
        ("tool_choice", {"tool_choice": "auto"}),
        ("function_call", {"function_call": {"name": "f"}}),
        ("modalities", {"modalities": ["text", "audio"]}),
        ("messages[0].role", {"messages": [{"role": "tool", "content": "x"}]}),
        ("messages", {"messages": [{"role": "user", "content": "x"}] * 4097}),
        ("response_format", {"response_format": {"type": "json_object"}}),
        ("response_format", {"response_format": {"type": "json_schema", "json_schema": {}}}),
        ("model", {"model": 5}),
    ],
)
def test_a_wrong_chat_field_is_refused_by_its_name(param: str, change: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as caught:
        chat_request({"messages": MESSAGES} | change)

    assert caught.value.details["param"] == param
    assert param in caught.value.cause


@pytest.mark.parametrize(
    ("param", "change"),
    [
        ("suffix", {"suffix": "x"}),
        ("best_of", {"best_of": 3}),
        ("best_of", {"best_of": 1, "n": 2}),
        ("logprobs", {"logprobs": 6}),
        ("logprobs", {"logprobs": True}),
        ("echo", {"echo": True, "logprobs": 0}),
        ("echo", {"echo": "yes"}),
        ("n", {"prompt": ["a", "b"], "n": 65}),
        ("prompt", {"prompt": ["a"] * 129}),
    ],
)
def test_a_wrong_completion_field_is_refused_by_its_name(
    param: str, change: dict[str, Any]
) -> None:
    with pytest.raises(BadRequest) as caught:
        completion_request({"prompt": "x"} | change)

    assert caught.value.details["param"] == param


@pytest.mark.parametrize(
    "change",
    [
        {"n": 10**9},
        {"top_logprobs": 10**9, "logprobs": True},
        {"stop": ["x"] * 100_000},
        {"stop": [["x" * 1_000_000] * 1000]},
        {"logit_bias": {str(i): 1 for i in range(100_000)}},
        {"max_tokens": 10**30},
        {"seed": [list(range(100_000))]},
    ],
)
def test_what_is_huge_is_refused_at_once_and_in_few_words(change: dict[str, Any]) -> None:
    began = time.thread_time()

    with pytest.raises(BadRequest) as caught:
        chat_request({"messages": MESSAGES} | change)

    assert time.thread_time() - began < 0.01
    assert len(str(caught.value)) < 400


def test_what_the_engine_can_do_is_taken() -> None:
    options = chat_request(
        {
            "messages": MESSAGES,
            "n": 3,
            "logprobs": True,
            "top_logprobs": 2,
            "presence_penalty": 0.5,
            "frequency_penalty": -0.5,
            "logit_bias": {"7": -100, "8": 1.5},
            "tool_choice": "none",
            "modalities": ["text"],
            "user": "somebody",
        }
    ).options

    assert (options.choice_count, options.top_logprobs) == (3, 2)
    assert (options.presence_penalty, options.frequency_penalty) == (0.5, -0.5)
    assert options.logit_bias == ((7, -100.0), (8, 1.5))
    assert chat_request({"messages": MESSAGES, "logprobs": True}).options.top_logprobs == 0
    completion = completion_request({"prompt": "x", "logprobs": 4, "n": 2, "best_of": 2})
    assert (completion.options.top_logprobs, completion.options.choice_count) == (4, 2)
    assert completion_request({"prompt": "x", "echo": True}).echo
    assert embedding_request({"input": "x", "dimensions": 8}).dimensions == 8


def test_defaults_and_nulls_are_those_of_openai() -> None:
    request = chat_request(
        {"messages": MESSAGES, "temperature": None, "n": None, "tools": None, "logprobs": False}
    )

    options = request.options
    assert (options.max_tokens, options.temperature, options.top_p) == (None, 1.0, 1.0)
    assert (options.stop, options.stream, options.include_usage) == ((), False, False)
    assert completion_request({"prompt": "x"}).options.max_tokens == 16


def test_text_parts_are_joined_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

    request = chat_request({"messages": [{"role": "developer", "content": parts}]})

    assert request.messages == ({"role": "system", "content": "ab"},)


def test_without_a_seed_every_request_draws_its_own() -> None:
    seeds = {chat_request({"messages": MESSAGES}).options.seed for _ in range(8)}

    assert len(seeds) == 8
    assert chat_request({"messages": MESSAGES, "seed": -1}).options.seed == 2**64 - 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
    ],
)
def test_prompts_come_in_every_shape_of_openai(value: Any, expected: tuple[Any, ...]) -> None:
    assert completion_request({"prompt": value}).prompts == expected
    assert embedding_request({"input": value}).inputs == expected


@pytest.mark.parametrize("value", [None, 5, [], [[]], [None], [[1, "a"]], [-1], [True], {"a": 1}])
def test_a_wrong_input_is_refused(value: Any) -> None:
    with pytest.raises(BadRequest, match="input"):
        embedding_request({"input": value})


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"x"', b"\xff"])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadJson):
        parse_body(body)
