"""An engine without a model: it answers with the prompt's own tokens, over and over.

Fast and predictable, it stands in for a real engine where only the plumbing matters.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from stoker.runtime.engine.context import tokens_left
from stoker.runtime.engine.protocol import FinishReason, SamplingParams, TokenLogprobs


class EchoEngine:
    """Repeats the prompt until `max_tokens`, or until an `end_token` of the prompt comes up."""

    def __init__(
        self, context_tokens: int = 512, end_token: int = -1, seconds_per_token: float = 0.0
    ) -> None:
        self.context_tokens = context_tokens
        self.active = 0
        self._end_token = end_token
        self.seconds_per_token = seconds_per_token

    def submit(
        self, tokens: Sequence[int], params: SamplingParams, answered: Sequence[int] = ()
    ) -> EchoStream:
        begun = len(tokens) + len(answered)
        limit = min(params.max_tokens, tokens_left(begun, self.context_tokens)) + len(answered)
        self.active += 1
        stream = EchoStream(self, list(tokens), limit, self._end_token, params.top_logprobs)
        stream.position = len(answered)
        return stream

    def close(self) -> None:
        """Nothing to release."""


class EchoStream:
    def __init__(
        self, engine: EchoEngine, tokens: list[int], limit: int, end: int, top: int | None
    ) -> None:
        self.finish_reason: FinishReason | None = None
        self.logprobs: TokenLogprobs | None = None
        self._engine = engine
        self._tokens = tokens
        self._limit = limit
        self._end = end
        self._top = top
        self.position = 0
        self._open = True

    def __aiter__(self) -> AsyncIterator[int]:
        return self

    async def __anext__(self) -> int:
        await asyncio.sleep(self._engine.seconds_per_token)
        if not self._open:
            raise StopAsyncIteration
        token = self._tokens[self.position % len(self._tokens)]
        if token == self._end or self.position == self._limit:
            self.finish_reason = "stop" if token == self._end else "length"
            self.cancel()
            raise StopAsyncIteration
        self.position += 1
        if self._top is not None:
            self.logprobs = TokenLogprobs(0.0, ((token, 0.0),)[: self._top])
        return token

    def cancel(self) -> None:
        if self._open:
            self._open = False
            self._engine.active -= 1
