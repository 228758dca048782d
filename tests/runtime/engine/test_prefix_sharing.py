"""What two prompts begin with alike is computed once and kept once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest

from harness import tiny_model
from stoker.runtime.engine.kv_cache import PAGE_TOKENS
from stoker.runtime.engine.protocol import SamplingParams
from stoker.runtime.engine.transformers_engine import TransformersEngine

CONTEXT_TOKENS = 1024
_random = random.Random(3)
SYSTEM = [_random.randrange(256) for _ in range(5 * PAGE_TOKENS)]
FIRST, SECOND = ([*SYSTEM, *(n for _ in range(30))] for n in (7, 9))
# What a request's last step completes is not kept, so that one of a single step leaves nothing.
TWO = SamplingParams(max_tokens=2)


class Counted:
    """An engine, and how many tokens went through its model."""

    def __init__(self) -> None:
        model = tiny_model.llama(context_tokens=CONTEXT_TOKENS)
        self.computed_tokens = 0
        model.get_input_embeddings().register_forward_pre_hook(self._count)
        self.engine = TransformersEngine(
            model, end_tokens=[], context_tokens=CONTEXT_TOKENS, concurrency=2
        )
        self.engine.start()

    def _count(self, _: object, arguments: tuple[object, ...]) -> None:
        self.computed_tokens += arguments[0].numel()  # type: ignore[attr-defined]

    async def tokens(self, prompt: list[int], params: SamplingParams = TWO) -> list[int]:
        return [token async for token in self.engine.submit(prompt, params)]


@pytest.fixture
def counted() -> Iterator[Counted]:
    made = Counted()
    yield made
    made.engine.close()


def test_a_prompt_that_begins_like_an_earlier_one_computes_only_the_rest(
    counted: Counted,
) -> None:
    async def scenario() -> None:
        await counted.tokens(FIRST)
        first = counted.computed_tokens
        assert first == len(FIRST) + 1
        await counted.tokens(SECOND)
        assert counted.computed_tokens - first == len(SECOND) - len(SYSTEM) + 1

    asyncio.run(scenario())


def test_a_shared_beginning_changes_no_token(counted: Counted) -> None:
    other = Counted()
    params = SamplingParams(max_tokens=30, temperature=1.0, seed=4)

    async def scenario() -> None:
        await counted.tokens(FIRST)
        assert await counted.tokens(SECOND, params) == await other.tokens(SECOND, params)

    asyncio.run(scenario())
    assert counted.computed_tokens < other.computed_tokens + len(FIRST)
    other.engine.close()


def test_two_that_run_at_once_hold_their_common_beginning_once(counted: Counted) -> None:
    long = SamplingParams(max_tokens=400, temperature=1.0, seed=1)

    async def scenario() -> None:
        first = counted.engine.submit(FIRST, long)
        await anext(first)
        alone = counted.engine.cached_tokens
        second = counted.engine.submit(SECOND, long)
        await anext(second)
        assert counted.engine.cached_tokens <= alone + 3 * PAGE_TOKENS
        first.cancel()
        second.cancel()

    asyncio.run(scenario())


def test_what_is_kept_for_later_makes_room_for_those_who_run(counted: Counted) -> None:
    """A prompt that needs the whole cache gets it, however many others were kept."""

    async def scenario() -> None:
        for number in range(12):
            await counted.tokens([number] * 700)
        answer = await counted.tokens([200] * 900, SamplingParams(max_tokens=100))
        assert len(answer) == 100

    asyncio.run(scenario())
