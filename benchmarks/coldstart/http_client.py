"""An HTTP client of OpenAI's routes that says when the first token came."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stoker.gateway.cli.server_timing import (
    decode_event,
    delta_text,
    parse_server_timing,
    sse_data,
)

ANSWER_SECONDS_MAXIMUM = 180.0
CHAT_PATH = "/v1/chat/completions"


class Failed(Exception):
    """Something did not do what is measured; the sentence says why."""


class NotReady(Failed):
    """The server does not answer such requests yet."""


@dataclass(frozen=True)
class Answer:
    """`ttft_ms` is from the request to the first text, or to the whole embedding."""

    ttft_ms: float
    text: str = ""
    stages_ms: Mapping[str, float] = field(default_factory=dict)
    prompt_tokens: int | None = None
    vector: Sequence[float] = ()

    def sample(self) -> dict[str, Any]:
        return {"ttft_ms": self.ttft_ms, "stages_ms": dict(self.stages_ms), "text": self.text}


def chat(
    port: int, body: Mapping[str, Any], headers: Mapping[str, str], path: str = CHAT_PATH
) -> Answer:
    """Stream one answer: OpenAI's events at its path, else plain text. Failed, ConnectionError."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS_MAXIMUM)
    with contextlib.closing(connection):
        begun = time.perf_counter()
        response = _post(connection, path, body, headers)
        if path != CHAT_PATH:
            return _plain(response, begun)
        first, words, tokens = None, [], None
        for data in sse_data(iter(response.readline, b"")):
            event = decode_event(data) or {}
            if event.get("error"):
                raise Failed(f"The stream ended with {event['error']}.")
            tokens = (event.get("usage") or {}).get("prompt_tokens", tokens)
            text = delta_text(event) if event.get("choices") else ""
            if text and first is None:
                first = time.perf_counter()
            words.append(text)
        if first is None:
            raise Failed("The stream ended without any text.")
        stages = parse_server_timing(response.headers.get("Server-Timing", ""))
        return Answer((first - begun) * 1000, "".join(words), stages, tokens)


def embed(port: int, body: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
    """Ask for one embedding. Raises Failed, ConnectionError."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS_MAXIMUM)
    with contextlib.closing(connection):
        begun = time.perf_counter()
        response = _post(connection, "/v1/embeddings", body, headers)
        vector = json.loads(response.read())["data"][0]["embedding"]
        ended = time.perf_counter()
        stages = parse_server_timing(response.headers.get("Server-Timing", ""))
        return Answer((ended - begun) * 1000, "", stages, None, vector)


def _post(
    connection: http.client.HTTPConnection,
    path: str,
    body: Mapping[str, Any],
    headers: Mapping[str, str],
) -> http.client.HTTPResponse:
    typed = {"Content-Type": "application/json", **headers}
    connection.request("POST", path, json.dumps(body), typed)
    response = connection.getresponse()
    if response.status != 200:
        said = f"It answered {response.status}: {response.read(300).decode(errors='replace')}"
        raise (NotReady if response.status in (404, 502, 503) else Failed)(said)
    return response


def _plain(response: http.client.HTTPResponse, begun: float) -> Answer:
    first = response.read1(65536)
    ttft_ms = (time.perf_counter() - begun) * 1000
    if not first:
        raise Failed("The answer is empty.")
    return Answer(ttft_ms, (first + response.read()).decode(errors="replace"))
