"""Bodies of the OpenAI routes, checked once: a wrong one is a 400 that names the parameter."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from stoker.placement.errors import BadJson, BadRequest

_STOPS_MAXIMUM = 4
_PROMPTS_MAXIMUM = 128
_INPUTS_MAXIMUM = 2048
_TOKEN_ID_MAXIMUM = 2**31 - 1
_INTEGER_MAXIMUM = 2**63 - 1

Prompt = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """`max_tokens` None: as many as the context leaves. Without a `seed`, one is drawn."""

    max_tokens: int | None
    temperature: float
    top_p: float
    seed: int
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool


@dataclass(frozen=True, slots=True)
class ChatRequest:
    model: str
    messages: tuple[Mapping[str, str], ...]
    options: GenerationOptions


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    model: str
    prompts: tuple[Prompt, ...]
    options: GenerationOptions


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    model: str
    inputs: tuple[Prompt, ...]
    encoding: Literal["float", "base64"]


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
    _refuse_unsupported(body, ("tools", "functions", "logprobs", "top_logprobs", "logit_bias"))
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "a list with at least one message", messages)
    limit = "max_completion_tokens" if body.get("max_completion_tokens") else "max_tokens"
    return ChatRequest(
        model=_text(body, "model"),
        messages=tuple(_message(m, f"messages[{i}]") for i, m in enumerate(messages)),
        options=_options(body, limit, None),
    )


def completion_request(body: Mapping[str, Any]) -> CompletionRequest:
    """POST /v1/completions."""
    _refuse_unsupported(body, ("logprobs", "suffix", "echo", "logit_bias"))
    if body.get("best_of") not in (None, 1):
        raise _unsupported("best_of", "1", body["best_of"])
    prompts = _prompts(body, "prompt", _PROMPTS_MAXIMUM)
    options = _options(body, "max_tokens", 16)
    if options.stream and len(prompts) > 1:
        raise _unsupported("prompt", "one prompt with stream", f"{len(prompts)} prompts")
    return CompletionRequest(_text(body, "model"), prompts, options)


def embedding_request(body: Mapping[str, Any]) -> EmbeddingRequest:
    """POST /v1/embeddings."""
    encoding: Any = body.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise _wrong("encoding_format", '"float" or "base64"', encoding)
    if body.get("dimensions") is not None:
        raise _unsupported("dimensions", "the model's own size", body["dimensions"])
    inputs = _prompts(body, "input", _INPUTS_MAXIMUM)
    return EmbeddingRequest(_text(body, "model"), inputs, encoding)


def _options(
    body: Mapping[str, Any], limit: str, default_max_tokens: int | None
) -> GenerationOptions:
    if _integer(body, "n", 1, 1, _INTEGER_MAXIMUM) != 1:
        raise _unsupported("n", "1", body["n"])
    for name in ("frequency_penalty", "presence_penalty"):
        if _number(body, name, 0.0, -2.0, 2.0) != 0.0:
            raise _unsupported(name, "0", body[name])
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
    )


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
    if _is_token(value[0]):
        value = [value]
    if len(value) > most:
        raise _wrong(name, f"at most {most} entries", f"{len(value)} entries")
    prompts: list[Prompt] = []
    for index, item in enumerate(value):
        if isinstance(item, str):
            prompts.append(item)
        elif isinstance(item, list) and item and all(_is_token(token) for token in item):
            prompts.append(tuple(item))
        else:
            raise _wrong(f"{name}[{index}]", expected, item)
    return tuple(prompts)


def _is_token(value: Any) -> bool:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    return is_integer and 0 <= value <= _TOKEN_ID_MAXIMUM


def _stops(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    valid = isinstance(stops, list) and all(isinstance(stop, str) and stop for stop in stops)
    if not valid or len(stops) > _STOPS_MAXIMUM:
        raise _wrong("stop", f"a string or a list of at most {_STOPS_MAXIMUM} of them", value)
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
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise _wrong(name, f"a number from {least:g} to {most:g}", value)
    if not least <= value <= most:
        raise _wrong(name, f"a number from {least:g} to {most:g}", value)
    return float(value)


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
    return f"{value!r:.60}" if value is not None else "nothing"
