"""One running answer: tokens of the engine as text that may be sent, and several at once.

tokens      t1     t2     t3      t4
text        "He"   ""     "llo"   " wor"        t2 was part of a character, or of a stop string
log probs   t1            t2 t3   t4            leave with the text that their tokens are part of
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

from stoker.placement.openai_requests import GenerationOptions
from stoker.placement.resumable import Told
from stoker.runtime.engine.context import tokens_left
from stoker.runtime.engine.protocol import Engine, FinishReason, SamplingParams, TokenLogprobs
from stoker.runtime.engine.stop import Detokenizer, StopMatcher

# Seeds of a request's choices lie so far apart (modulo 2**64) that no two requests' are alike.
_SEED_STEP = 0x9E3779B97F4A7C15


class Codec(Protocol):
    """What the handlers need of a tokenizer."""

    @property
    def can_chat(self) -> bool: ...
    @property
    def vocabulary_size(self) -> int: ...
    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...
    def decode(self, tokens: Sequence[int]) -> str: ...
    def token_bytes(self, token: int) -> bytes: ...
    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token as clients see it, its log probability, and the likeliest ones in its place."""

    raw: bytes
    logprob: float
    top: tuple[ScoredToken, ...] = ()

    @property
    def text(self) -> str:
        return self.raw.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that may be sent, which may be empty, and the scores of its tokens if asked for.

    `tokens` came since the piece before; the `last` piece has all that was still held.
    """

    text: str
    scores: tuple[ScoredToken, ...] = ()
    tokens: tuple[int, ...] = ()
    last: bool = False


class Generation:
    """One running answer: iterate `pieces` for its text; the rest is set as it goes.

    `echo` is text that it begins with. `choice` counts the answers to one prompt: each draws with
    a seed of its own. What was `told` of it elsewhere is not said again: `pieces` goes on behind
    it, and `told_characters` counts its text.
    """

    def __init__(
        self,
        engine: Engine,
        codec: Codec,
        prompt: Sequence[int],
        options: GenerationOptions,
        *,
        choice: int = 0,
        echo: str = "",
        told: Told | None = None,
    ) -> None:
        left = tokens_left(len(prompt), engine.context_tokens)
        self.choice = choice
        self.prompt_tokens = len(prompt)
        self.completion_tokens = 0
        self.prefill: tuple[float, float] | None = None
        self.finish_reason: FinishReason = "length"
        self._prompt = prompt
        self._engine = engine
        self._codec = codec
        self._echo = echo
        self._detokenizer = Detokenizer(codec.decode)
        self._stop = StopMatcher(options.stop)
        self._held: list[ScoredToken] = []
        self._params = SamplingParams(
            max_tokens=min(options.max_tokens or left, left),
            temperature=options.temperature,
            top_p=options.top_p,
            seed=(options.seed + choice * _SEED_STEP) % 2**64,
            presence_penalty=options.presence_penalty,
            frequency_penalty=options.frequency_penalty,
            logit_bias=options.logit_bias,
            top_logprobs=options.top_logprobs,
        )
        self.told_characters = 0
        self._told = told.tokens if told else []
        # What ended it is known, and only its last event is missing.
        self._over = bool(told and told.reason)
        if told is not None:
            self._replay(told)

    def _replay(self, told: Told) -> None:
        """Bring text and counts to where the answer stands."""
        for token in told.tokens:
            self.completion_tokens += 1
            text, stopped = self._stop.push(self._detokenizer.push(token))
            self.told_characters += len(self._echo) + len(text)
            self._echo = ""
            if stopped:
                self.finish_reason, self._over = "stop", True
        if told.reason == "length":
            self.finish_reason = "length"
        elif told.reason:
            self.finish_reason = "stop"

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The answer as it comes, a piece per token, possibly empty. Closing it cancels."""
        if self._over:
            return
        if len(self._told) >= self._params.max_tokens:
            yield self._rest("length")
            return
        started = time.monotonic()
        params = replace(self._params, max_tokens=self._params.max_tokens - len(self._told))
        stream = self._engine.submit(self._prompt, params, self._told)
        echo = self._echo
        try:
            async for token in stream:
                if self.prefill is None:
                    self.prefill = (started, time.monotonic())
                self.completion_tokens += 1
                if stream.logprobs is not None:
                    self._held.append(self._scored(token, stream.logprobs))
                text, stopped = self._stop.push(self._detokenizer.push(token))
                if stopped:
                    self.finish_reason = "stop"
                yield Piece(echo + text, self._scores_with(text), (token,))
                echo = ""
                if stopped:
                    return
            yield self._rest(stream.finish_reason or "stop", echo)
        finally:
            stream.cancel()

    def _rest(self, reason: FinishReason, echo: str = "") -> Piece:
        """What was held of the text, when no token comes any more."""
        text, stopped = self._stop.push(self._detokenizer.flush())
        self.finish_reason = "stop" if stopped else reason
        if stopped:
            return Piece(echo + text, self._scores_with(text), last=True)
        return Piece(echo + text + self._stop.flush(), tuple(self._held), last=True)

    async def prepare(self) -> None:
        """Compute what the next token needs, so that `pieces` elsewhere in time begins sooner."""
        if self._over or len(self._told) >= self._params.max_tokens:
            return
        stream = self._engine.submit(self._prompt, replace(self._params, max_tokens=1), self._told)
        try:
            async for _ in stream:
                break
        finally:
            stream.cancel()

    async def whole(self) -> Piece:
        async with aclosing(self.pieces()) as pieces:
            parts = [piece async for piece in pieces]
        text = "".join(part.text for part in parts)
        return Piece(text, tuple(score for part in parts for score in part.scores))

    def _scored(self, token: int, logprobs: TokenLogprobs) -> ScoredToken:
        raw = self._codec.token_bytes
        top = tuple(ScoredToken(raw(other), logprob) for other, logprob in logprobs.top)
        return ScoredToken(raw(token), logprobs.chosen, top)

    def _scores_with(self, text: str) -> tuple[ScoredToken, ...]:
        """What was held until some text leaves; a stop string takes its tokens' with it."""
        if not text:
            return ()
        scores = tuple(self._held)
        self._held.clear()
        return scores


async def side_by_side(
    generations: Sequence[Generation],
) -> AsyncGenerator[tuple[int, Piece | None], None]:
    """The pieces of all as they come, each with its generation's number; None at the end of one.

    Raises what the first that fails raises. Closing it cancels all.
    """
    if len(generations) == 1:
        async with aclosing(generations[0].pieces()) as pieces:
            async for piece in pieces:
                yield 0, piece
        yield 0, None
        return
    queue: asyncio.Queue[tuple[int, Piece | Exception | None]] = asyncio.Queue(len(generations))

    async def feed(number: int, generation: Generation) -> None:
        try:
            async with aclosing(generation.pieces()) as pieces:
                async for piece in pieces:
                    await queue.put((number, piece))
            await queue.put((number, None))
        except Exception as error:  # noqa: BLE001 (whoever reads gets it)
            await queue.put((number, error))

    tasks = [asyncio.ensure_future(feed(i, g)) for i, g in enumerate(generations)]
    try:
        left = len(tasks)
        while left:
            number, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            left -= item is None
            yield number, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
