"""`load_tensors`: the parts of all ranks and stages make up the whole, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file as reference
from transformers import LlamaConfig, LlamaForCausalLM

import stoker
from harness import s3 as s3_harness
from harness import tiny_model
from stoker.deploy.s3server import S3Server
from stoker.native import CHUNK_BYTES
from stoker.placement.errors import BadRequest, CheckpointError, ChunkCorrupt
from stoker.runtime.checkpoint.load_tensors import load_tensors
from stoker.runtime.checkpoint.manifest import (
    MANIFEST_NAME,
    Manifest,
    TensorEntry,
    WeightFile,
    chunk_count,
    decode,
    engine_tensors,
)
from stoker.runtime.checkpoint.pack import pack
from stoker.runtime.checkpoint.split import Share, select

MIB = 1 << 20
COLUMNS = {"o_proj", "down_proj"}
ROWS = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head"}


def write(folder: Path, *, tied: bool = False, **options: int) -> Path:
    torch.manual_seed(3)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 256}
    config = LlamaConfig(
        **{**sizes, "num_hidden_layers": 5, **options},
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=tied,
        attention_bias=True,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="100KB")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("split")
    folders = {"sharded": write(base / "sharded"), "tied": write(base / "tied", tied=True)}
    assert len(list(folders["sharded"].glob("*.safetensors"))) > 1
    pack(folders["sharded"], base / "packed")
    return {**folders, "packed": base / "packed"}


def whole_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in reference(path).items()
        if not name.startswith("__stoker")
    }


def put_together(parts: list[torch.Tensor], name: str) -> torch.Tensor:
    module, leaf = name.split(".")[-2:]
    if module in ROWS:
        return torch.cat(parts, 0)
    if module in COLUMNS and leaf == "weight":
        return torch.cat(parts, 1)
    assert all(part.equal(parts[0]) for part in parts)
    return parts[0]


@pytest.mark.parametrize("kind", ["sharded", "packed", "tied"])
def test_without_a_split_it_is_the_whole_checkpoint(folders: dict[str, Path], kind: str) -> None:
    found, expected = load_tensors(folders[kind]), whole_of(folders[kind])

    assert found.keys() == expected.keys()
    assert all(found[name].equal(expected[name]) for name in expected)


@pytest.mark.parametrize("kind", ["sharded", "packed", "tied"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("stages", [1, 2, 4])
def test_ranks_and_stages_make_up_the_whole(
    folders: dict[str, Path], kind: str, ranks: int, stages: int
) -> None:
    expected, seen = whole_of(folders[kind]), set()
    for stage in range(stages):
        parts = [
            load_tensors(folders[kind], tensor_parallel=(rank, ranks), pipeline=(stage, stages))
            for rank in range(ranks)
        ]
        for name in parts[0]:
            seen.add(name)
            found = put_together([part[name] for part in parts], name)
            assert found.equal(expected[name]), name
            split = name.split(".")[-2] in ROWS
            assert len(parts[0][name]) == len(expected[name]) // (ranks if split else 1)
    assert seen == expected.keys()


@pytest.mark.parametrize(("kind", "head"), [("packed", "lm_head"), ("tied", "embed_tokens")])
def test_stages_follow_the_rule(folders: dict[str, Path], kind: str, head: str) -> None:
    stages = [load_tensors(folders[kind], pipeline=(stage, 2)).keys() for stage in range(2)]

    layers = [{name.split(".")[2] for name in names if ".layers." in name} for names in stages]
    assert layers == [{"0", "1"}, {"2", "3", "4"}]
    rest = [{name.split(".")[-2] for name in names if ".layers." not in name} for names in stages]
    assert rest == [{"embed_tokens"}, {"norm", head}]


def test_an_encoder_splits_by_stages(tmp_path: Path) -> None:
    folder = tiny_model.write_bert(tmp_path / "bert")
    first, last = (load_tensors(folder, pipeline=(stage, 2)) for stage in range(2))

    assert {**first, **last}.keys() == whole_of(folder).keys()
    assert all(name.startswith(("embeddings.", "encoder.layer.0.")) for name in first)
    assert all(name.startswith(("encoder.layer.1.", "pooler.")) for name in last)


@pytest.mark.parametrize("kind", ["sharded", "packed"])
def test_a_split_loads_from_s3(
    folders: dict[str, Path], s3_environment: S3Server, kind: str
) -> None:
    uri = s3_harness.upload(s3_environment, folders[kind], f"split-{kind}")

    found = load_tensors(uri, tensor_parallel=(1, 2), pipeline=(1, 2))

    expected = load_tensors(folders[kind], tensor_parallel=(1, 2), pipeline=(1, 2))
    assert found.keys() == expected.keys()
    assert all(found[name].equal(expected[name]) for name in expected)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 300 MiB, most of it in matrices of 64 MiB that are split by rows."""
    base = tmp_path_factory.mktemp("large")
    sizes = {"hidden_size": 1024, "intermediate_size": 32768, "num_hidden_layers": 2}
    write(base / "plain", **sizes)
    pack(base / "plain", base / "packed")
    return base / "packed"


def bytes_read(folder: Path, **split: tuple[int, int]) -> int:
    totals = []
    load_tensors(folder, on_progress=lambda done, total: totals.append((done, total)), **split)
    assert totals[-1][0] == totals[-1][1]
    return totals[-1][1]


def test_a_stage_reads_its_own_chunks_only(large: Path) -> None:
    size = (large / "model.safetensors").stat().st_size

    read = [bytes_read(large, pipeline=(stage, 2)) for stage in range(2)]

    assert sum(read) <= size + 2 * CHUNK_BYTES


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_reads_the_chunks_of_its_bytes_only(large: Path, ranks: int) -> None:
    manifest = decode((large / MANIFEST_NAME).read_bytes())
    whole = (large / "model.safetensors").stat().st_size

    for rank in range(ranks):
        chunks = set[int]()
        for t in engine_tensors(manifest):
            rows = t.tensor_parallel_dimension == 0
            part = (t.end - t.begin) // (ranks if rows else 1)
            begin = t.begin + part * rank if rows else t.begin
            chunks |= set(range(begin // CHUNK_BYTES, (begin + part - 1) // CHUNK_BYTES + 1))
        read = bytes_read(large, tensor_parallel=(rank, ranks))
        assert read == sum(manifest.chunks[n].bytes for n in chunks)
        assert read < 0.9 * whole


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_of_a_large_model_a_rank_reads_its_share_of_the_rows(ranks: int) -> None:
    """A layer of a model of 70 billion parameters: matrices of 128 and 448 MiB."""
    sizes = {"q_proj": (8192, 8192), "gate_proj": (28672, 8192), "up_proj": (28672, 8192)}
    tensors, at = [], 4096
    for name, shape in sizes.items():
        end = at + 2 * shape[0] * shape[1]
        tensors.append(TensorEntry(name, "BF16", shape, 0, at, end, 0, 0))
        at = end
    weight = WeightFile("model.safetensors", at, ("0" * 32,) * chunk_count(at))
    manifest = Manifest(True, (), (weight,), tuple(tensors))
    cut = {tensor.name: 0 for tensor in tensors}

    for rank in range(ranks):
        chunks = select(manifest, tensors, cut, Share(rank, ranks)).chunks
        slack = 2 * CHUNK_BYTES * len(tensors)
        assert sum(chunk.bytes for chunk in chunks) <= at / ranks + slack


def test_a_part_takes_memory_of_its_own_size(large: Path) -> None:
    tensor = load_tensors(large, tensor_parallel=(0, 4))["model.layers.0.mlp.up_proj.weight"]

    assert tensor.untyped_storage().nbytes() == tensor.nbytes == 64 * MIB // 4


def test_a_flipped_bit_in_a_part_is_refused_and_elsewhere_is_not_read(
    large: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "flipped"
    folder.mkdir()
    for path in large.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    with open(folder / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))

    assert load_tensors(folder, pipeline=(0, 2))
    with pytest.raises(ChunkCorrupt):
        load_tensors(folder, pipeline=(1, 2))


def test_a_dimension_that_does_not_divide_is_named(folders: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"dimension 0 of .* 3 ranks"):
        load_tensors(folders["packed"], tensor_parallel=(0, 3))


@pytest.mark.parametrize(
    "split",
    [
        {"tensor_parallel": (2, 2)},
        {"tensor_parallel": (-1, 2)},
        {"pipeline": (0, 0)},
        {"pipeline": (0, 6)},
    ],
)
def test_an_impossible_split_is_refused(
    folders: dict[str, Path], split: dict[str, tuple[int, int]]
) -> None:
    with pytest.raises(BadRequest):
        load_tensors(folders["packed"], **split)


def test_a_dtype_is_cast_to_on_the_way(folders: dict[str, Path]) -> None:
    found = load_tensors(folders["sharded"], dtype=torch.float32, tensor_parallel=(0, 2))

    expected = load_tensors(folders["sharded"], tensor_parallel=(0, 2))
    assert all(found[name].equal(expected[name].float()) for name in expected)


def test_the_package_offers_it() -> None:
    assert stoker.load_tensors is load_tensors
