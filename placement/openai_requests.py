"""Bodies of the OpenAI routes, checked: a wrong one is a 400 that names the parameter.

The gateway checks before it looks for an instance, so that no wrong request ever starts one; the
instance checks again, since its function can be called past those routes. Every check takes
microseconds whatever the body says, but for the lists of tokens, which are walked once.
"""

from __future__ import annotations

import math
import reprlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from stoker.placement.errors import BadJson, BadRequest

MESSAGES_MAXIMUM = 4096
CHOICES_MAXIMUM = 128
TOP_LOGPROBS_MAXIMUM = 20
_COMPLETION_LOGPROBS_MAXIMUM = 5
_STOPS_MAXIMUM = 4
# Each token is compared with every start of every stop string.
_STOP_CHARACTERS_MAXIMUM = 256
_BIASES_MAXIMUM = 1024
_PROMPTS_MAXIMUM = 128
INPUTS_MAXIMUM = 2048
_TOKEN_ID_MAXIMUM = 2**31 - 1
_INTEGER_MAXIMUM = 2**63 - 1

Prompt = str | tuple[int, ...]
# Of a large value only the beginning is written.
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = 60


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """`max_tokens` None: as many as the context leaves. Without a `seed`, one is drawn.

    `choice_count` answers are given to each prompt. With `top_logprobs`, each token comes with its
    log probability and those of so many likeliest ones.
    """

    max_tokens: int | None
    temperature: float
    top_p: float
    seed: int
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    choice_count: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    model: str
    messages: tuple[Mapping[str, str], ...]
    options: GenerationOptions


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """With `echo`, an answer begins with its prompt."""

    model: str
    prompts: tuple[Prompt, ...]
    options: GenerationOptions
    echo: bool = False


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """`dimensions` is how long the client wants the vectors, if it said so."""

    model: str
    inputs: tuple[Prompt, ...]
    encoding: Literal["float", "base64"]
    dimensions: int | None = None


def parse_body(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`; BadJson when it is none."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadJson(
            f"Expected a JSON object as the body, found: {error}.", "Send valid JSON."
        ) from error
    if not isinstance(value, dict):
        found = type(value).__name__
        raise BadJson(f"Expected a JSON object as the body, found {found}.", "Send an object.")
    return value


def chat_request(body: Mapping[str, Any]) -> ChatRequest:
    """POST /v1/chat/completions."""
    _refuse_unsupported(body, ("tools", "functions", "audio", "web_search_options"))
    for name in ("tool_choice", "function_call"):
        if body.get(name) not in (None, "none"):
            raise _unsupported(name, '"none"', body[name])
    if body.get("modalities") not in (None, [], ["text"]):
        raise _unsupported("modalities", '["text"]', body["modalities"])
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "a list with at least one message", messages)
    if len(messages) > MESSAGES_MAXIMUM:
        found = f"{len(messages)} messages"
        raise _wrong("messages", f"at most {MESSAGES_MAXIMUM} messages", found)
    limit = "max_completion_tokens" if body.get("max_completion_tokens") else "max_tokens"
    return ChatRequest(
        model=_text(body, "model"),
        messages=tuple(_message(m, f"messages[{i}]") for i, m in enumerate(messages)),
        options=_options(body, limit, None, _chat_logprobs(body)),
    )


def completion_request(body: Mapping[str, Any]) -> CompletionRequest:
    """POST /v1/completions."""
    _refuse_unsupported(body, ("suffix",))
    prompts = _prompts(body, "prompt", _PROMPTS_MAXIMUM)
    logprobs = _integer(body, "logprobs", None, 0, _COMPLETION_LOGPROBS_MAXIMUM)
    options = _options(body, "max_tokens", 16, logprobs)
    if options.choice_count * len(prompts) > CHOICES_MAXIMUM:
        expected = f"at most {CHOICES_MAXIMUM} answers to all prompts"
        raise _wrong("n", expected, f"{options.choice_count} to each of {len(prompts)}")
    if body.get("best_of") not in (None, options.choice_count):
        raise _unsupported("best_of", f"{options.choice_count}, as n", body["best_of"])
    echo = _boolean(body, "echo")
    if echo and logprobs is not None:
        raise _unsupported("echo", "false with logprobs: those of a prompt are not computed", echo)
    return CompletionRequest(_text(body, "model"), prompts, options, echo)


def embedding_request(body: Mapping[str, Any]) -> EmbeddingRequest:
    """POST /v1/embeddings."""
    encoding: Any = body.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise _wrong("encoding_format", '"float" or "base64"', encoding)
    dimensions = _integer(body, "dimensions", None, 1, _TOKEN_ID_MAXIMUM)
    inputs = _prompts(body, "input", INPUTS_MAXIMUM)
    return EmbeddingRequest(_text(body, "model"), inputs, encoding, dimensions)


def wrong_dimensions(expected: int, found: int) -> BadRequest:
    """The model's vectors have another size than the client asked for."""
    return _unsupported("dimensions", f"{expected}, the model's own size", found)


def _options(
    body: Mapping[str, Any], limit: str, default_max_tokens: int | None, top_logprobs: int | None
) -> GenerationOptions:
    response_format = body.get("response_format")
    if response_format is not None and response_format != {"type": "text"}:
        raise _unsupported("response_format", '{"type": "text"}', response_format)
    usage = body.get("stream_options") or {}
    if not isinstance(usage, dict):
        raise _wrong("stream_options", "an object", usage)
    seed = _integer(body, "seed", None, -_INTEGER_MAXIMUM - 1, _INTEGER_MAXIMUM)
    return GenerationOptions(
        max_tokens=_integer(body, limit, default_max_tokens, 1, _INTEGER_MAXIMUM),
        temperature=_number(body, "temperature", 1.0, 0.0, 2.0),
        top_p=_number(body, "top_p", 1.0, 0.0, 1.0) or 1e-9,
        seed=secrets.randbits(63) if seed is None else seed & (2**64 - 1),
        stop=_stops(body.get("stop")),
        stream=_boolean(body, "stream"),
        include_usage=_boolean(usage, "include_usage"),
        choice_count=_integer(body, "n", 1, 1, CHOICES_MAXIMUM) or 1,
        presence_penalty=_number(body, "presence_penalty", 0.0, -2.0, 2.0),
        frequency_penalty=_number(body, "frequency_penalty", 0.0, -2.0, 2.0),
        logit_bias=_biases(body.get("logit_bias")),
        top_logprobs=top_logprobs,
    )


def _chat_logprobs(body: Mapping[str, Any]) -> int | None:
    wanted = _boolean(body, "logprobs")
    top = _integer(body, "top_logprobs", None, 0, TOP_LOGPROBS_MAXIMUM)
    if top and not wanted:
        raise _wrong("top_logprobs", "logprobs: true beside it", top)
    return top or 0 if wanted else None


def _biases(value: Any) -> tuple[tuple[int, float], ...]:
    if value is None:
        return ()
    expected = f"an object of at most {_BIASES_MAXIMUM} token numbers, each with -100 to 100,"
    if not isinstance(value, dict):
        raise _wrong("logit_bias", expected, value)
    if len(value) > _BIASES_MAXIMUM:
        raise _wrong("logit_bias", expected, f"{len(value)} of them")
    biases = []
    for token, bias in value.items():
        number = int(token) if token.isdecimal() and token.isascii() and len(token) < 12 else -1
        if not 0 <= number <= _TOKEN_ID_MAXIMUM or not _is_number(bias, -100.0, 100.0):
            raise _wrong("logit_bias", expected, {token: bias})
        biases.append((number, float(bias)))
    return tuple(biases)


def _message(message: Any, where: str) -> Mapping[str, str]:
    if not isinstance(message, dict):
        raise _wrong(where, "an object", message)
    role = message.get("role")
    if role == "developer":
        role = "system"
    if role not in ("system", "user", "assistant"):
        raise _wrong(f"{where}.role", "system, developer, user or assistant", role)
    if message.get("tool_calls"):
        raise _unsupported(f"{where}.tool_calls", "no tool calls", message["tool_calls"])
    return {"role": role, "content": _content(message.get("content"), f"{where}.content")}


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _wrong(where, "a string or a list of text parts", content)
    parts = []
    for index, part in enumerate(content):
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise _wrong(f"{where}[{index}]", 'a part {"type": "text", "text": …}', part)
        parts.append(text)
    return "".join(parts)


def _prompts(body: Mapping[str, Any], name: str, most: int) -> tuple[Prompt, ...]:
    value = body.get(name)
    if isinstance(value, str):
        return (value,)
    expected = "a string, a list of strings, or lists of token numbers"
    if not isinstance(value, list) or not value:
        raise _wrong(name, expected, value)
    if type(value[0]) is int:
        value = [value]
    if len(value) > most:
        raise _wrong(name, f"at most {most} entries", f"{len(value)} entries")
    prompts: list[Prompt] = []
    for index, item in enumerate(value):
        if isinstance(item, str):
            prompts.append(item)
        elif isinstance(item, list) and _are_tokens(item):
            prompts.append(tuple(item))
        else:
            raise _wrong(f"{name}[{index}]", expected, item)
    return tuple(prompts)


def _are_tokens(values: list[Any]) -> bool:
    return set(map(type, values)) == {int} and min(values) >= 0 and max(values) <= _TOKEN_ID_MAXIMUM


def _stops(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    expected = (
        f"a string or a list of at most {_STOPS_MAXIMUM}, "
        f"of at most {_STOP_CHARACTERS_MAXIMUM} characters each,"
    )
    if not isinstance(stops, list) or len(stops) > _STOPS_MAXIMUM:
        found = f"{len(stops)} of them" if isinstance(stops, list) else stops
        raise _wrong("stop", expected, found)
    lengths = [len(stop) if isinstance(stop, str) else 0 for stop in stops]
    if not all(0 < length <= _STOP_CHARACTERS_MAXIMUM for length in lengths):
        raise _wrong("stop", expected, value)
    return tuple(stops)


def _integer(
    body: Mapping[str, Any], name: str, default: int | None, least: int, most: int
) -> int | None:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise _wrong(name, f"an integer from {least} to {most}", value)
    return value


def _number(body: Mapping[str, Any], name: str, default: float, least: float, most: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if not _is_number(value, least, most):
        raise _wrong(name, f"a number from {least:g} to {most:g}", value)
    return float(value)


def _is_number(value: Any, least: float, most: float) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and least <= value <= most


def _boolean(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise _wrong(name, "true or false", value)
    return bool(value)


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise _wrong(name, "a string", value)
    return value or ""


def _refuse_unsupported(body: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if body.get(name):
            raise _unsupported(name, "none", body[name])


def _wrong(name: str, expected: str, found: Any) -> BadRequest:
    return BadRequest(
        f"Expected {expected} in {name}, found {_shown(found)}.",
        "Correct the request's body.",
        param=name,
    )


def _unsupported(name: str, expected: str, found: Any) -> BadRequest:
    return BadRequest(
        f"{name} is not supported: expected {expected}, found {_shown(found)}.",
        f"Leave {name} out.",
        param=name,
    )


def _shown(value: Any) -> str:
    return f"{_BRIEF.repr(value):.60}" if value is not None else "nothing"
