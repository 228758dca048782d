from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import s3 as s3_harness
from harness.caches import GIB, MakeCache
from stoker.deploy.s3server import S3Server
from stoker.native import CHUNK_BYTES, Pool
from stoker.runtime.checkpoint.settings import CheckpointSettings
from stoker.runtime.checkpoint.source import OpenSource
from stoker.runtime.checkpoint.tiers import CheckpointCache


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_harness.running(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_environment(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LlamaForCausalLM of 2 layers, saved as Hugging Face does, head tied."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=100,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=257,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        attention_bias=True,
        mlp_bias=True,
    )
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def packed_tiny(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from stoker.runtime.checkpoint.pack import pack

    out = tmp_path_factory.mktemp("packed") / "llama"
    pack(tiny_llama, out)
    return out


@pytest.fixture
def make_cache(tmp_path: Path) -> Iterator[MakeCache]:
    caches: list[CheckpointCache] = []

    def make(
        opener: OpenSource | None = None,
        *,
        chunks: int = 8,
        ssd_bytes: int = GIB,
        settings: CheckpointSettings | None = None,
        on_change: Callable[[], None] = lambda: None,
        memory_file: int | None = None,
        folder: str = "ssd",
        cluster_token: str = "",
    ) -> CheckpointCache:
        cache = CheckpointCache(
            tmp_path / folder,
            ssd_bytes,
            Pool(chunks * CHUNK_BYTES, memory_file),
            settings or CheckpointSettings(),
            source_opener=opener,
            on_change=on_change,
            cluster_token=cluster_token,
        )
        caches.append(cache)
        return cache

    yield make
    for cache in caches:
        cache.close()
