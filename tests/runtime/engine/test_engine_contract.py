"""What every engine promises to a handler, for the real one and the one that echoes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from harness import tiny_model
from stoker.placement.errors import ContextOverflow
from stoker.runtime.engine.echo import EchoEngine
from stoker.runtime.engine.protocol import Engine, SamplingParams, TokenStream
from stoker.runtime.engine.transformers_engine import TransformersEngine


@pytest.fixture(params=["transformers", "echo"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    made: Engine = EchoEngine(context_tokens=64)
    if request.param == "transformers":
        transformers = TransformersEngine(
            tiny_model.llama(), end_tokens=[], context_tokens=64, concurrency=4
        )
        transformers.start()
        made = transformers
    yield made
    made.close()


async def _all(stream: TokenStream) -> list[int]:
    return [token async for token in stream]


def test_a_stream_ends_after_max_tokens_with_length(engine: Engine) -> None:
    async def scenario() -> None:
        stream = engine.submit([1, 2, 3], SamplingParams(max_tokens=5))
        assert len(await _all(stream)) == 5
        assert stream.finish_reason == "length"

    asyncio.run(scenario())


def test_an_answer_never_outgrows_the_context(engine: Engine) -> None:
    async def scenario() -> None:
        stream = engine.submit([5] * 60, SamplingParams(max_tokens=100))
        assert len(await _all(stream)) == 4
        assert stream.finish_reason == "length"

    asyncio.run(scenario())


def test_a_prompt_that_fills_the_context_is_refused_with_both_counts(engine: Engine) -> None:
    async def scenario() -> None:
        with pytest.raises(ContextOverflow) as caught:
            engine.submit([5] * 64, SamplingParams(max_tokens=1))
        assert caught.value.details == {"prompt_tokens": 64, "context_tokens": 64}

    asyncio.run(scenario())


def test_a_cancelled_stream_ends_at_once_and_may_be_cancelled_again(engine: Engine) -> None:
    async def scenario() -> None:
        stream = engine.submit([1, 2, 3], SamplingParams(max_tokens=50))
        await anext(stream)
        stream.cancel()
        stream.cancel()
        assert len(await asyncio.wait_for(_all(stream), 1.0)) < 50
        assert stream.finish_reason is None

    asyncio.run(scenario())


def test_an_ended_stream_stays_ended(engine: Engine) -> None:
    async def scenario() -> None:
        stream = engine.submit([1, 2, 3], SamplingParams(max_tokens=1))
        await _all(stream)
        assert await asyncio.wait_for(_all(stream), 1.0) == []
        stream.cancel()

    asyncio.run(scenario())


def test_many_requests_run_at_once(engine: Engine) -> None:
    async def scenario() -> None:
        streams = [engine.submit([i, 7], SamplingParams(max_tokens=6)) for i in range(1, 7)]
        answers = await asyncio.gather(*(_all(stream) for stream in streams))
        assert [len(answer) for answer in answers] == [6] * 6

    asyncio.run(scenario())


def test_scores_come_with_their_tokens_when_asked_and_not_otherwise(engine: Engine) -> None:
    async def scenario() -> None:
        stream = engine.submit([1, 2, 3], SamplingParams(max_tokens=4, top_logprobs=1))
        scored = [(token, stream.logprobs) async for token in stream]
        assert len(scored) == 4
        for token, logprobs in scored:
            assert logprobs is not None
            assert logprobs.chosen <= 0.0
            assert logprobs.top == ((token, logprobs.chosen),)
        plain = engine.submit([1, 2, 3], SamplingParams(max_tokens=2))
        assert [plain.logprobs async for _ in plain] == [None, None]

    asyncio.run(scenario())
