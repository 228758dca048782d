"""What does not fit into memory is refused with its numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from harness import tiny_model
from stoker.placement.errors import BadSpec, MemoryShort
from stoker.placement.records import FunctionRecord, Scaling
from stoker.runtime.checkpoint.manifest import Manifest
from stoker.runtime.checkpoint.resolve import resolve
from stoker.runtime.checkpoint.source_file import FileSource
from stoker.runtime.engine import kv_cache
from stoker.runtime.preflight import check_memory

PLENTY = 1 << 40
CHAT = FunctionRecord("chat", "ns", "image", task="chat", scaling=Scaling(concurrency=4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write_llama(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Manifest:
    return resolve(FileSource(folder))


def limited(memory: str) -> FunctionRecord:
    return replace(CHAT, limits={"memory": memory})


def cache_bytes(folder: Path, element_bytes: int = 4) -> int:
    config = json.loads((folder / "config.json").read_text())
    blocks = kv_cache.cache_blocks(256, 4)
    found = kv_cache.cache_bytes(config, element_bytes, blocks)
    assert found
    return found


def test_what_fits_exactly_is_taken(folder: Path, manifest: Manifest) -> None:
    needed = cache_bytes(folder)

    check_memory(CHAT, manifest, folder, needed)
    check_memory(limited(str(needed)), manifest, folder, PLENTY)


def test_one_byte_less_on_the_node_is_refused_with_the_numbers(
    folder: Path, manifest: Manifest
) -> None:
    needed = cache_bytes(folder)

    with pytest.raises(MemoryShort, match=r"what the node has free.*stoker/max-context") as caught:
        check_memory(CHAT, manifest, folder, needed - 1)

    assert caught.value.details == {
        "needed_bytes": needed,
        "allowed_bytes": needed - 1,
        "cache_bytes": needed,
        "cast_bytes": 0,
    }


def test_a_limit_that_is_too_small_is_refused_and_says_what_would_fit(
    folder: Path, manifest: Manifest
) -> None:
    with pytest.raises(MemoryShort, match="the function's own limit") as caught:
        check_memory(limited("256Ki"), manifest, folder, PLENTY)
    fitting = int(caught.value.remedy.split()[1])

    smaller = replace(limited("256Ki"), max_context=fitting // 8, scaling=Scaling(concurrency=4))
    check_memory(smaller, manifest, folder, PLENTY)


def test_weights_that_are_cast_count(folder: Path, manifest: Manifest) -> None:
    weights = sum(tensor.end - tensor.begin for tensor in manifest.tensors)
    needed = weights // 2 + cache_bytes(folder, element_bytes=2)
    halved = replace(CHAT, dtype="bfloat16")

    check_memory(halved, manifest, folder, needed)
    with pytest.raises(MemoryShort) as caught:
        check_memory(halved, manifest, folder, needed - 1)

    assert caught.value.details["cast_bytes"] == weights // 2


def test_an_encoder_needs_no_cache(folder: Path, manifest: Manifest) -> None:
    check_memory(replace(CHAT, task="embed"), manifest, folder, 0)


@pytest.mark.parametrize("config", [b"{}", b"not JSON", b"[]"])
def test_a_config_without_sizes_is_left_to_the_engine(
    manifest: Manifest, tmp_path: Path, config: bytes
) -> None:
    (tmp_path / "config.json").write_bytes(config)

    check_memory(CHAT, manifest, tmp_path, 0)


@pytest.mark.parametrize("limits", [{}, {"cpu": "1"}])
def test_without_a_limit_the_node_alone_counts(
    folder: Path, manifest: Manifest, limits: Mapping[str, str]
) -> None:
    check_memory(replace(CHAT, limits=limits), manifest, folder, PLENTY)


def test_a_limit_that_is_no_quantity_is_refused(folder: Path, manifest: Manifest) -> None:
    with pytest.raises(BadSpec, match="'lots'"):
        check_memory(limited("lots"), manifest, folder, PLENTY)
