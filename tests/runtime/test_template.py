"""A function made ahead of its weights."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

from harness import tiny_model
from harness.workers import Resident, resident
from stoker.native import Pool
from stoker.placement.records import FunctionRecord, Scaling
from stoker.runtime.engine.protocol import SamplingParams
from stoker.runtime.engine.transformers_engine import (
    BATCH_TOKENS_MAXIMUM,
    FIRST_BATCH_TOKENS_MAXIMUM,
    TransformersEngine,
)
from stoker.runtime.handlers.http import Request
from stoker.runtime.template import ModelTemplate, template_key

CHAT = FunctionRecord("chat", "ns", "image", task="chat", scaling=Scaling(concurrency=2))
EMBED = FunctionRecord("embed", "ns", "image", task="embed")
BODY = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 12}
TEXTS = {"input": ["one text", "another"]}


@pytest.fixture
def pool() -> Pool:
    return Pool(64 << 20)


@pytest.fixture
def chat(pool: Pool, tmp_path: Path) -> Resident:
    return resident(tiny_model.write_llama(tmp_path / "llama"), pool, tmp_path)


def answer(
    function: FunctionRecord, made: ModelTemplate, checkpoint: Resident, body: object
) -> bytes:
    handler, arrival = made.start(
        checkpoint.pool.reader_fd, checkpoint.start.chunks, None, lambda: None
    )
    assert arrival is None
    path = "/v1/embeddings" if function.task == "embed" else "/v1/chat/completions"

    async def ask() -> bytes:
        response = await handler(Request("POST", path, "", (), json.dumps(body).encode()))
        assert isinstance(response.body, bytes)
        return response.body

    try:
        return asyncio.run(ask())
    finally:
        made.close()


def template(function: FunctionRecord, checkpoint: Resident) -> ModelTemplate:
    return ModelTemplate(template_key(function, "digest"), checkpoint.start)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_what_is_made_before_its_weights_equals_what_is_made_after(
    chat: Resident, dtype: str
) -> None:
    function = replace(CHAT, dtype=dtype)
    before = template(function, chat)
    chat.read()
    after = template(function, chat)
    answers = [json.loads(answer(function, made, chat, BODY)) for made in (before, after)]
    texts = [found["choices"][0]["message"]["content"] for found in answers]
    assert texts[0] == texts[1]
    assert texts[0]


def test_an_encoder_has_a_template_too(pool: Pool, tmp_path: Path) -> None:
    checkpoint = resident(tiny_model.write_bert(tmp_path / "bert"), pool, tmp_path)
    before = template(EMBED, checkpoint)
    checkpoint.read()
    vectors = [
        json.loads(answer(EMBED, made, checkpoint, TEXTS))["data"]
        for made in (before, template(EMBED, checkpoint))
    ]
    assert vectors[0] == vectors[1]
    assert any(vectors[0][0]["embedding"])


def test_functions_that_differ_in_what_they_are_made_of_share_no_template() -> None:
    key = template_key(CHAT, "digest")
    assert template_key(replace(CHAT, name="other", environment={"A": "b"}), "digest") == key
    for other in (
        template_key(CHAT, "other"),
        template_key(replace(CHAT, task="completion"), "digest"),
        template_key(replace(CHAT, dtype="float32"), "digest"),
        template_key(replace(CHAT, max_context=64), "digest"),
        template_key(replace(CHAT, scaling=Scaling(concurrency=3)), "digest"),
    ):
        assert other != key


def private_bytes() -> int:
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return sum(
        int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("Private_")
    )


def test_the_room_for_requests_takes_no_memory_until_they_come() -> None:
    model = tiny_model.llama(context_tokens=16_384)
    before = private_bytes()
    engine = TransformersEngine(model, end_tokens=[], context_tokens=16_384, concurrency=8)
    engine.start()
    asyncio.run(_generate(engine, range(8), 2))
    mask_bytes = FIRST_BATCH_TOKENS_MAXIMUM * 16_384 * 4
    engine.close()
    assert private_bytes() - before < mask_bytes / 8


async def _generate(engine: TransformersEngine, prompt: Iterable[int], count: int) -> list[int]:
    stream = engine.submit([token % 250 for token in prompt], SamplingParams(max_tokens=count))
    return [token async for token in stream]


def test_a_long_prompt_is_one_pass_while_the_weights_come_and_split_afterwards() -> None:
    model = tiny_model.llama(context_tokens=4096)
    passes: list[int] = []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: passes.append(kwargs["input_ids"].shape[-1]), with_kwargs=True
    )
    engine = TransformersEngine(model, end_tokens=[], context_tokens=4096, concurrency=2)
    arrived: Future[float] = Future()
    engine.start(arrived=arrived)
    asyncio.run(_generate(engine, range(1300), 1))
    assert passes == [1300]
    arrived.set_result(0.0)
    passes.clear()
    asyncio.run(_generate(engine, range(7, 1307), 1))
    engine.close()
    assert sum(passes) == 1300
    assert max(passes) <= BATCH_TOKENS_MAXIMUM
