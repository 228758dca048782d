"""What config.json says of the cache is what the engine then takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from harness import tiny_model
from stoker.runtime.engine import kv_cache
from stoker.runtime.engine.transformers_engine import TransformersEngine


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", sorted(tiny_model.LANGUAGE_MODELS))
@pytest.mark.parametrize(("context", "concurrency"), [(200, 3), (64, 1)])
def test_the_cache_is_as_large_as_config_json_says(
    tmp_path: Path, architecture: str, dtype: torch.dtype, context: int, concurrency: int
) -> None:
    model = tiny_model.LANGUAGE_MODELS[architecture]().to(dtype)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    blocks = kv_cache.cache_blocks(context, concurrency)

    engine = TransformersEngine(
        model, end_tokens=[], context_tokens=context, concurrency=concurrency
    )
    found = engine.cache_bytes
    engine.close()

    assert found == kv_cache.cache_bytes(config, dtype.itemsize, blocks)


def test_one_request_alone_may_use_the_whole_context() -> None:
    assert kv_cache.cache_blocks(100_000, 1) * kv_cache.PAGE_TOKENS >= 100_000


def test_many_requests_share_a_bounded_cache() -> None:
    most = kv_cache.cache_blocks(8192, 1000) * kv_cache.PAGE_TOKENS

    assert most <= kv_cache.CACHE_TOKENS_MAXIMUM + kv_cache.PAGE_TOKENS


@pytest.mark.parametrize(
    ("asked", "model_maximum", "expected"),
    [(None, None, 8192), (None, 2048, 2048), (512, 2048, 512), (4096, 2048, 2048), (99, None, 99)],
)
def test_the_context_is_what_was_asked_as_far_as_the_model_goes(
    asked: int | None, model_maximum: int | None, expected: int
) -> None:
    assert kv_cache.context_tokens(asked, model_maximum) == expected


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"n_layer": 12, "n_head": 12, "n_embd": 768},
        {"num_hidden_layers": "3", "num_attention_heads": 4, "hidden_size": 48},
        {"num_hidden_layers": 3, "num_attention_heads": 0, "hidden_size": 48},
    ],
)
def test_a_config_that_names_no_sizes_gives_none(config: dict[str, object]) -> None:
    assert kv_cache.cache_bytes(config, 2, 10) is None
