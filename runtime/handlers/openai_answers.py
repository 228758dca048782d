"""The JSON that OpenAI clients read: completions, chunks of a stream, embeddings, errors."""

from __future__ import annotations

import base64
import time
import uuid
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from stoker.placement.errors import StokerError
from stoker.runtime.engine.protocol import FinishReason

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int

    def to_json(self) -> dict[str, int]:
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """What stays the same from the first chunk of an answer to the last."""

    kind: Literal["chat", "completion"]
    model: str
    answer_id: str
    created: int

    @staticmethod
    def new(kind: Literal["chat", "completion"], model: str) -> Answer:
        prefix = "chatcmpl-" if kind == "chat" else "cmpl-"
        return Answer(kind, model, prefix + uuid.uuid4().hex, int(time.time()))

    def whole(self, texts: Sequence[tuple[str, FinishReason]], usage: Usage) -> bytes:
        """The answer of a request that does not stream: one choice per text."""
        choices = []
        for index, (text, reason) in enumerate(texts):
            body: dict[str, Any] = {"text": text}
            if self.kind == "chat":
                body = {"message": {"role": "assistant", "content": text, "refusal": None}}
            choices.append({"index": index, **body, "logprobs": None, "finish_reason": str(reason)})
        name = "chat.completion" if self.kind == "chat" else "text_completion"
        return orjson.dumps(self._envelope(name, choices) | {"usage": usage.to_json()})

    def role_chunk(self) -> bytes:
        """The first chunk of a chat."""
        return self._chunk({"delta": {"role": "assistant", "content": ""}}, None)

    def text_chunk(self, text: str) -> bytes:
        piece = {"delta": {"content": text}} if self.kind == "chat" else {"text": text}
        return self._chunk(piece, None)

    def last_chunk(self, reason: FinishReason) -> bytes:
        return self._chunk({"delta": {}} if self.kind == "chat" else {"text": ""}, reason)

    def usage_chunk(self, usage: Usage) -> bytes:
        return _event(self._envelope(self._chunk_name, []) | {"usage": usage.to_json()})

    @property
    def _chunk_name(self) -> str:
        return "chat.completion.chunk" if self.kind == "chat" else "text_completion"

    def _chunk(self, body: Mapping[str, Any], reason: FinishReason | None) -> bytes:
        choice = {"index": 0, **body, "logprobs": None, "finish_reason": reason}
        return _event(self._envelope(self._chunk_name, [choice]))

    def _envelope(self, name: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.answer_id,
            "object": name,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def embeddings(
    model: str,
    vectors: Sequence[Sequence[float]],
    encoding: Literal["float", "base64"],
    prompt_tokens: int,
) -> bytes:
    """The answer of /v1/embeddings; base64 is of little-endian float32."""
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": list(vector) if encoding == "float" else _base64(vector),
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    return orjson.dumps({"object": "list", "data": data, "model": model, "usage": usage})


def error_event(error: StokerError) -> bytes:
    """The event that ends a stream which failed; without it clients notice nothing."""
    body = {
        "message": str(error),
        "type": "server_error" if error.status >= 500 else "invalid_request_error",
        "param": error.details.get("param"),
        "code": error.code,
    }
    return _event({"error": body})


def _base64(vector: Sequence[float]) -> str:
    return base64.b64encode(array("f", vector).tobytes()).decode()


def _event(payload: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(payload) + b"\n\n"
