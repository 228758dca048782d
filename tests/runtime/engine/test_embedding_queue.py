"""Texts of requests that come together share a forward pass, and each gets its own vectors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from stoker.placement.errors import ContextOverflow
from stoker.runtime.engine.embedder import Embedder, Pooling
from stoker.runtime.engine.embedding_queue import PASS_TOKENS_MAXIMUM, EmbeddingQueue


class Slow:
    """Embeds a text as its tokens' sum; a pass lasts until it is let `go`."""

    def __init__(self) -> None:
        self.passes: list[int] = []
        self.go = threading.Semaphore(0)
        self.error: Exception | None = None

    def check(self, texts: Sequence[Sequence[int]]) -> None:
        if any(len(text) > 100_000 for text in texts):
            raise ContextOverflow("Expected a shorter text.")

    def embed(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        self.passes.append(len(texts))
        assert self.go.acquire(timeout=10)
        if self.error is not None:
            raise self.error
        return [[float(sum(text))] for text in texts]


def run(story: Callable[[Slow, EmbeddingQueue], Coroutine[Any, Any, None]]) -> Slow:
    slow = Slow()

    async def main() -> None:
        await asyncio.wait_for(story(slow, EmbeddingQueue(slow)), 20)

    asyncio.run(main())
    return slow


async def begun(slow: Slow, passes: int) -> None:
    while len(slow.passes) < passes:
        await asyncio.sleep(0.002)


def test_what_comes_while_a_pass_runs_goes_into_the_next() -> None:
    async def story(slow: Slow, queue: EmbeddingQueue) -> None:
        first = asyncio.ensure_future(queue.embed([[1, 2]]))
        await begun(slow, 1)
        others = [asyncio.ensure_future(queue.embed([[n], [n, n]])) for n in range(5)]
        await asyncio.sleep(0)
        slow.go.release(2)
        assert await first == [[3.0]]
        assert await asyncio.gather(*others) == [[[float(n)], [float(2 * n)]] for n in range(5)]

    assert run(story).passes == [1, 10]


def test_a_large_request_lets_the_others_through() -> None:
    large = [[1] * (PASS_TOKENS_MAXIMUM // 2)] * 6

    async def story(slow: Slow, queue: EmbeddingQueue) -> None:
        long = asyncio.ensure_future(queue.embed(large))
        await begun(slow, 1)
        short = asyncio.ensure_future(queue.embed([[7]]))
        await asyncio.sleep(0)
        slow.go.release(2)
        # Texts are taken up to the bound, so that the second pass begins with the short one.
        assert await long_or(short, long) == [[7.0]]
        assert not long.done()
        slow.go.release(10)
        assert await long == [[float(PASS_TOKENS_MAXIMUM // 2)]] * 6

    run(story)


async def long_or(short: asyncio.Future[Any], long: asyncio.Future[Any]) -> Any:
    await asyncio.wait({short, long}, return_when=asyncio.FIRST_COMPLETED)
    return short.result()


def test_whoever_has_left_is_not_computed() -> None:
    async def story(slow: Slow, queue: EmbeddingQueue) -> None:
        first = asyncio.ensure_future(queue.embed([[1]]))
        await begun(slow, 1)
        left, stays = (asyncio.ensure_future(queue.embed([[n]] * 3)) for n in (2, 3))
        await asyncio.sleep(0)
        left.cancel()
        slow.go.release(2)
        await first
        assert await stays == [[3.0]] * 3

    assert run(story).passes == [1, 3]


def test_a_pass_that_fails_fails_its_requests_and_no_later_one() -> None:
    async def story(slow: Slow, queue: EmbeddingQueue) -> None:
        slow.error = RuntimeError("out of luck")
        failing = [asyncio.ensure_future(queue.embed([[n]])) for n in range(2)]
        slow.go.release()
        found = await asyncio.gather(*failing, return_exceptions=True)
        assert [str(error) for error in found] == ["out of luck"] * 2
        slow.error = None
        slow.go.release()
        assert await queue.embed([[5]]) == [[5.0]]

    run(story)


def test_a_text_too_long_is_refused_and_its_neighbours_are_not() -> None:
    async def story(slow: Slow, queue: EmbeddingQueue) -> None:
        fits = asyncio.ensure_future(queue.embed([[4]]))
        with pytest.raises(ContextOverflow):
            await queue.embed([[1] * 100_001])
        slow.go.release()
        assert await fits == [[4.0]]

    run(story)


def test_a_real_encoder_gives_each_the_vector_that_it_gets_alone() -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    model = BertModel(config).eval()
    passes: list[int] = []
    model.register_forward_pre_hook(
        lambda _, __, inputs: passes.append(len(inputs["input_ids"])), with_kwargs=True
    )
    embedder = Embedder(model, Pooling(), 32)
    texts = [[n + 1] * (n + 1) for n in range(12)]
    alone = [embedder.embed([text])[0] for text in texts]
    passes.clear()

    async def together() -> list[list[list[float]]]:
        queue = EmbeddingQueue(embedder)
        return await asyncio.gather(*(queue.embed([text]) for text in texts))

    found = [vectors[0] for vectors in asyncio.run(together())]

    torch.testing.assert_close(torch.tensor(found), torch.tensor(alone), atol=1e-5, rtol=1e-4)
    assert sum(passes) == 12
    assert len(passes) <= 2
