"""The JSON that OpenAI clients read: completions, chunks of a stream, embeddings, errors."""

from __future__ import annotations

import base64
import codecs
import time
import uuid
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from stoker.placement.errors import StokerError
from stoker.runtime.engine.protocol import FinishReason
from stoker.runtime.handlers.generation import Piece, ScoredToken

DONE = b"data: [DONE]\n\n"
Kind = Literal["chat", "completion"]


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
    """What stays the same from the first chunk of an answer to the last.

    `scored` answers say of each token how likely it was.
    """

    kind: Kind
    model: str
    answer_id: str
    created: int
    scored: bool

    @staticmethod
    def new(kind: Kind, model: str, *, scored: bool) -> Answer:
        prefix = "chatcmpl-" if kind == "chat" else "cmpl-"
        return Answer(kind, model, prefix + uuid.uuid4().hex, int(time.time()), scored)

    def whole(self, answers: Sequence[tuple[Piece, FinishReason]], usage: Usage) -> bytes:
        """The answer of a request that does not stream: one choice per text."""
        choices = []
        for index, (piece, reason) in enumerate(answers):
            body: dict[str, Any] = {"text": piece.text}
            if self.kind == "chat":
                body = {"message": {"role": "assistant", "content": piece.text, "refusal": None}}
            logprobs = self._logprobs(piece.scores, 0)
            choices.append({"index": index, **body, "logprobs": logprobs, "finish_reason": reason})
        name = "chat.completion" if self.kind == "chat" else "text_completion"
        return orjson.dumps(self._envelope(name, choices) | {"usage": usage.to_json()})

    def role_chunk(self, index: int) -> bytes:
        """The first chunk of a chat."""
        return self._chunk(index, {"delta": {"role": "assistant", "content": ""}}, None)

    def text_chunk(self, index: int, piece: Piece, offset: int) -> bytes:
        """`offset` counts the characters before, in chunks of the same choice."""
        text = piece.text
        body = {"delta": {"content": text}} if self.kind == "chat" else {"text": text}
        return self._chunk(index, body, None, self._logprobs(piece.scores, offset))

    def last_chunk(self, index: int, reason: FinishReason) -> bytes:
        return self._chunk(index, {"delta": {}} if self.kind == "chat" else {"text": ""}, reason)

    def usage_chunk(self, usage: Usage) -> bytes:
        return _event(self._envelope(self._chunk_name, []) | {"usage": usage.to_json()})

    @property
    def _chunk_name(self) -> str:
        return "chat.completion.chunk" if self.kind == "chat" else "text_completion"

    def _chunk(
        self,
        index: int,
        body: Mapping[str, Any],
        reason: FinishReason | None,
        logprobs: Mapping[str, Any] | None = None,
    ) -> bytes:
        choice = {"index": index, **body, "logprobs": logprobs, "finish_reason": reason}
        return _event(self._envelope(self._chunk_name, [choice]))

    def _logprobs(self, scores: Sequence[ScoredToken], offset: int) -> dict[str, Any] | None:
        if not self.scored:
            return None
        if self.kind == "chat":
            content = [
                {**_scored(score), "top_logprobs": [_scored(other) for other in score.top]}
                for score in scores
            ]
            return {"content": content, "refusal": None}
        offsets, decoder = [], codecs.getincrementaldecoder("utf-8")("ignore")
        for score in scores:
            offsets.append(offset)
            offset += len(decoder.decode(score.raw))
        return {
            "tokens": [score.text for score in scores],
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": [
                {other.text: other.logprob for other in (*score.top, score)} for score in scores
            ],
            "text_offset": offsets,
        }

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


def _scored(score: ScoredToken) -> dict[str, Any]:
    return {"token": score.text, "logprob": score.logprob, "bytes": list(score.raw)}


def _base64(vector: Sequence[float]) -> str:
    return base64.b64encode(array("f", vector).tobytes()).decode()


def _event(payload: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(payload) + b"\n\n"
