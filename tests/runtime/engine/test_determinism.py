"""A seed draws the same tokens, and greedy decoding finds the same, whatever else runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from harness import tiny_model
from stoker.runtime.engine import kv_cache
from stoker.runtime.engine.protocol import SamplingParams
from stoker.runtime.engine.transformers_engine import TransformersEngine

PROMPT = list(range(40, 110))
WATCHED = [
    SamplingParams(max_tokens=40),
    SamplingParams(max_tokens=40, temperature=0.8, seed=11),
    SamplingParams(max_tokens=40, temperature=1.3, top_p=0.9, seed=2**63 + 5),
]


@pytest.fixture(params=sorted(tiny_model.LANGUAGE_MODELS))
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def engine(architecture: str) -> Iterator[TransformersEngine]:
    made = _engine(architecture)
    yield made
    made.close()


def _engine(architecture: str) -> TransformersEngine:
    model = tiny_model.LANGUAGE_MODELS[architecture]()
    made = TransformersEngine(model, end_tokens=[], context_tokens=256, concurrency=6)
    made.start()
    return made


async def _tokens(
    engine: TransformersEngine, params: SamplingParams, prompt: list[int] = PROMPT
) -> list[int]:
    return [token async for token in engine.submit(prompt, params)]


async def _neighbour(engine: TransformersEngine, number: int) -> None:
    """Joins at its own moment, with its own prompt, some like the watched one, and leaves."""
    await asyncio.sleep(0.004 * number)
    prompt = PROMPT[: 64 + number] if number % 3 == 0 else [number] * (5 + 17 * number)
    params = SamplingParams(max_tokens=8 + 5 * number, temperature=1.0, seed=number)
    stream = engine.submit(prompt, params)
    async for _ in stream:
        if number % 4 == 1:
            stream.cancel()


def test_neighbours_that_come_and_go_change_nothing(engine: TransformersEngine) -> None:
    async def scenario() -> None:
        alone = [await _tokens(engine, params) for params in WATCHED]
        assert len({tuple(tokens) for tokens in alone}) == len(WATCHED)
        crowd = [asyncio.ensure_future(_neighbour(engine, number)) for number in range(8)]
        together = await asyncio.gather(*(_tokens(engine, params) for params in WATCHED))
        await asyncio.gather(*crowd)
        assert together == alone

    asyncio.run(scenario())


def test_another_instance_draws_the_same_and_so_does_the_same_again(
    engine: TransformersEngine, architecture: str
) -> None:
    other = _engine(architecture)

    async def scenario(asked: TransformersEngine) -> list[list[int]]:
        return [await _tokens(asked, params) for params in WATCHED]

    first = asyncio.run(scenario(engine))
    assert asyncio.run(scenario(engine)) == first
    assert asyncio.run(scenario(other)) == first
    other.close()


def test_a_request_that_is_set_aside_for_want_of_room_goes_on_as_if_it_was_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    roomy = _engine("llama")
    monkeypatch.setattr(kv_cache, "CACHE_TOKENS_MAXIMUM", 256)
    tight = _engine("llama")
    params = [
        SamplingParams(max_tokens=120, temperature=1.0, seed=seed, presence_penalty=1.0)
        for seed in range(5)
    ]

    async def scenario(engine: TransformersEngine) -> list[list[int]]:
        prompts = [[seed + 1] * 70 for seed in range(5)]
        return await asyncio.gather(
            *(_tokens(engine, each, prompt) for each, prompt in zip(params, prompts, strict=True))
        )

    assert tight.cache_bytes < roomy.cache_bytes / 3
    assert asyncio.run(scenario(tight)) == asyncio.run(scenario(roomy))
    tight.close()
    roomy.close()
