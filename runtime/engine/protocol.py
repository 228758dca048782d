"""What a handler needs of an engine: submit tokens, read tokens, cancel.

Every engine passes the contract in tests/runtime/engine/test_engine_contract.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens. `temperature` 0 is greedy; `top_p` is in (0, 1].

    The choice at a position depends on `seed` and that position alone, so a continuation in
    another batch, or on another machine, draws the same tokens. `seed` is in [0, 2**64).
    A token that the answer has already loses `presence_penalty`, and `frequency_penalty` for each
    time; `logit_bias` are tokens and what they gain. With `top_logprobs`, each token's log
    probability is noted, and those of so many likeliest ones.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    top_logprobs: int | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the likeliest token is the choice, and nothing is to be noted of it."""
        changed = self.temperature or self.presence_penalty or self.frequency_penalty
        return not changed and not self.logit_bias and self.top_logprobs is None


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of the probability of a token, and of the likeliest ones in its place.

    `top` are tokens and their logarithms, the likeliest first. All are the model's own, before
    biases, penalties and temperature.
    """

    chosen: float
    top: tuple[tuple[int, float], ...]


class TokenStream(Protocol):
    """The tokens of one request as they come, without the end-of-sequence token.

    Iteration raises InstanceError when the engine fails. `finish_reason` is set once the
    iteration has ended. `logprobs` are those of the token that came last, if they were asked for.
    `cancel` ends it at once, frees the request's memory and may be called at any time, also after
    the end.
    """

    @property
    def finish_reason(self) -> FinishReason | None: ...

    @property
    def logprobs(self) -> TokenLogprobs | None: ...

    def __aiter__(self) -> AsyncIterator[int]: ...

    async def __anext__(self) -> int: ...

    def cancel(self) -> None: ...


class Engine(Protocol):
    """Generates tokens for many requests at once.

    `context_tokens` is the most that a prompt and its answer may have together. `submit` is
    called on the event loop; it raises ContextOverflow when the prompt leaves no room. `answered`
    are tokens that the answer has from elsewhere: the stream goes on behind them, and they count
    neither for `max_tokens` nor as part of the prompt.
    """

    @property
    def context_tokens(self) -> int: ...

    def submit(
        self, tokens: Sequence[int], params: SamplingParams, answered: Sequence[int] = ()
    ) -> TokenStream: ...

    def close(self) -> None: ...
