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
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class TokenStream(Protocol):
    """The tokens of one request as they come, without the end-of-sequence token.

    Iteration raises InstanceError when the engine fails. `finish_reason` is set once the
    iteration has ended. `cancel` ends it at once, frees the request's memory and may be called
    at any time, also after the end.
    """

    @property
    def finish_reason(self) -> FinishReason | None: ...

    def __aiter__(self) -> AsyncIterator[int]: ...

    async def __anext__(self) -> int: ...

    def cancel(self) -> None: ...


class Engine(Protocol):
    """Generates tokens for many requests at once.

    `context_tokens` is the most that a prompt and its answer may have together. `submit` is
    called on the event loop; it raises ContextOverflow when the prompt leaves no room.
    """

    @property
    def context_tokens(self) -> int: ...

    def submit(self, tokens: Sequence[int], params: SamplingParams) -> TokenStream: ...

    def close(self) -> None: ...
