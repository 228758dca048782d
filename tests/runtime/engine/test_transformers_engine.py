from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from transformers.modeling_utils import PreTrainedModel

from harness import tiny_model
from stoker.placement.errors import InstanceLost
from stoker.runtime.engine.protocol import SamplingParams, TokenLogprobs
from stoker.runtime.engine.transformers_engine import TransformersEngine

PROMPTS = [[1, 2, 3], [9] * 40, [200, 100, 50, 25, 12], list(range(70))]


@pytest.fixture
def model() -> LlamaForCausalLM:
    return tiny_model.llama()


@pytest.fixture
def engine(model: LlamaForCausalLM) -> Iterator[TransformersEngine]:
    made = TransformersEngine(model, end_tokens=[tiny_model.END], context_tokens=256, concurrency=4)
    made.start()
    yield made
    made.close()


async def _tokens(
    engine: TransformersEngine, prompt: Sequence[int], params: SamplingParams
) -> list[int]:
    return [token async for token in engine.submit(prompt, params)]


def _generate(model: PreTrainedModel, prompt: Sequence[int], count: int) -> list[int]:
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=tiny_model.END,
        pad_token_id=0,
    )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens[: tokens.index(tiny_model.END)] if tiny_model.END in tokens else tokens


@pytest.mark.parametrize("architecture", sorted(tiny_model.LANGUAGE_MODELS))
def test_greedy_tokens_equal_those_of_plain_generate_alone_and_together(
    architecture: str,
) -> None:
    make = tiny_model.LANGUAGE_MODELS[architecture]
    expected = [_generate(make(), prompt, 24) for prompt in PROMPTS]
    params = SamplingParams(max_tokens=24)
    engine = TransformersEngine(
        make(), end_tokens=[tiny_model.END], context_tokens=256, concurrency=4
    )
    engine.start()

    async def scenario() -> None:
        alone = [await _tokens(engine, prompt, params) for prompt in PROMPTS]
        together = await asyncio.gather(*(_tokens(engine, p, params) for p in PROMPTS))
        assert alone == expected
        assert together == expected

    asyncio.run(scenario())
    engine.close()


def test_a_request_joins_while_others_decode(engine: TransformersEngine) -> None:
    async def scenario() -> None:
        long = engine.submit(PROMPTS[0], SamplingParams(max_tokens=200, temperature=1.0, seed=1))
        await anext(long)
        short = await _tokens(engine, PROMPTS[2], SamplingParams(max_tokens=3))
        assert len(short) == 3
        assert long.finish_reason is None
        long.cancel()

    asyncio.run(scenario())


def test_the_same_seed_draws_the_same_tokens_whatever_the_neighbours(
    engine: TransformersEngine,
) -> None:
    params = SamplingParams(max_tokens=16, temperature=1.0, top_p=0.95, seed=42)

    async def scenario() -> None:
        alone = await _tokens(engine, PROMPTS[0], params)
        others = [SamplingParams(max_tokens=16, temperature=1.3, seed=s) for s in range(3)]
        crowd = await asyncio.gather(
            *(_tokens(engine, PROMPTS[1], other) for other in others),
            _tokens(engine, PROMPTS[0], params),
        )
        assert crowd[-1] == alone
        other_seed = SamplingParams(max_tokens=16, temperature=1.0, top_p=0.95, seed=43)
        assert await _tokens(engine, PROMPTS[0], other_seed) != alone

    asyncio.run(scenario())


def test_a_continuation_draws_the_tokens_that_the_whole_would_have_had(
    engine: TransformersEngine,
) -> None:
    whole = SamplingParams(max_tokens=12, temperature=1.0, seed=7)
    rest = SamplingParams(max_tokens=7, temperature=1.0, seed=7)

    async def scenario() -> None:
        tokens = await _tokens(engine, PROMPTS[0], whole)
        assert await _tokens(engine, PROMPTS[0] + tokens[:5], rest) == tokens[5:]

    asyncio.run(scenario())


def test_scores_are_those_of_a_plain_forward_pass(
    model: LlamaForCausalLM, engine: TransformersEngine
) -> None:
    params = SamplingParams(max_tokens=6, temperature=1.0, seed=3, top_logprobs=3)

    async def scenario() -> tuple[list[int], list[TokenLogprobs | None]]:
        stream = engine.submit(PROMPTS[0], params)
        pairs = [(token, stream.logprobs) async for token in stream]
        return [token for token, _ in pairs], [logprobs for _, logprobs in pairs]

    tokens, noted = asyncio.run(scenario())
    with torch.inference_mode():
        logits = model(torch.tensor([PROMPTS[0] + tokens])).logits[0]
    rows = logits.log_softmax(-1)[len(PROMPTS[0]) - 1 : -1]
    for token, row, logprobs in zip(tokens, rows, noted, strict=True):
        assert logprobs is not None
        assert logprobs.chosen == pytest.approx(float(row[token]), abs=1e-3)
        assert [value for _, value in logprobs.top] == pytest.approx(
            row.topk(3).values.tolist(), abs=1e-3
        )


def test_penalties_keep_tokens_from_coming_back_and_biases_choose_them(
    engine: TransformersEngine,
) -> None:
    async def scenario() -> None:
        plain = await _tokens(engine, PROMPTS[1], SamplingParams(max_tokens=12))
        penalized = SamplingParams(max_tokens=12, presence_penalty=2.0, frequency_penalty=2.0)
        found = await _tokens(engine, PROMPTS[1], penalized)
        assert len(set(found)) > len(set(plain))
        biased = SamplingParams(max_tokens=3, logit_bias=((17, 100.0),))
        assert await _tokens(engine, PROMPTS[0], biased) == [17, 17, 17]

    asyncio.run(scenario())


def test_a_cancelled_request_frees_its_cache_within_a_second(engine: TransformersEngine) -> None:
    async def scenario() -> None:
        stream = engine.submit([3] * 90, SamplingParams(max_tokens=150, temperature=1.0, seed=2))
        await anext(stream)
        assert engine.cached_tokens >= 90
        stream.cancel()
        deadline = time.monotonic() + 1.0
        while engine.cached_tokens and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert engine.cached_tokens == 0

    asyncio.run(scenario())


def test_the_end_token_stops_and_is_not_part_of_the_answer(model: LlamaForCausalLM) -> None:
    tokens = _generate(tiny_model.llama(), PROMPTS[0], 8)
    end = tokens[4]
    engine = TransformersEngine(model, end_tokens=[end], context_tokens=64, concurrency=2)
    engine.start()

    async def scenario() -> None:
        stream = engine.submit(PROMPTS[0], SamplingParams(max_tokens=20))
        assert [token async for token in stream] == tokens[: tokens.index(end)]
        assert stream.finish_reason == "stop"

    asyncio.run(scenario())
    engine.close()


def test_an_engine_that_breaks_fails_its_requests_and_tells_its_owner(
    model: LlamaForCausalLM,
) -> None:
    lost: list[bool] = []
    engine = TransformersEngine(model, end_tokens=[], context_tokens=64, concurrency=2)
    engine.start(lambda: lost.append(True))

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of luck")

    model.forward = broken

    async def scenario() -> None:
        with pytest.raises(InstanceLost, match="out of luck"):
            await _tokens(engine, [1, 2], SamplingParams(max_tokens=4))
        assert lost
        with pytest.raises(InstanceLost):
            engine.submit([1, 2], SamplingParams(max_tokens=4))

    asyncio.run(scenario())


def _cached_model() -> Path:
    root = os.environ.get("STOKER_MODELS") or Path.home() / ".cache" / "stoker" / "models"
    return Path(root) / "smollm2-135m-instruct"


@pytest.mark.skipif(not _cached_model().is_dir(), reason="functions/fetch_models.py has not run")
def test_smollm2_answers_greedily_as_plain_generate_does() -> None:
    real = AutoModelForCausalLM.from_pretrained(_cached_model(), dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(_cached_model() / "tokenizer.json"))
    prompt = tokenizer.encode("The capital of France is").ids
    expected = real.generate(
        torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0
    )[0, len(prompt) :].tolist()
    engine = TransformersEngine(real, end_tokens=[2], context_tokens=128, concurrency=2)
    engine.start()

    found = asyncio.run(_tokens(engine, prompt, SamplingParams(max_tokens=12)))

    engine.close()
    assert found == expected
