from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import stoker
from harness import checkpoints, tiny_model
from stoker.placement.errors import CheckpointError
from stoker.runtime.checkpoint.manifest import (
    FILLER_PREFIX,
    MANIFEST_NAME,
    decode,
    engine_tensors,
)
from stoker.runtime.checkpoint.pack import pack
from stoker.runtime.checkpoint.resolve import resolve
from stoker.runtime.checkpoint.source_file import FileSource


def tensors_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    loaded = load_file(folder / "model.safetensors")
    return {name: t for name, t in loaded.items() if not name.startswith(FILLER_PREFIX)}


def header_of(folder: Path) -> tuple[int, dict[str, Any]]:
    payload = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(payload[:8], "little")
    return 8 + length, json.loads(payload[8 : 8 + length])


def test_a_packed_model_is_safetensors_with_equal_tensors(
    tiny_llama: Path, packed_tiny: Path
) -> None:
    before, after = tensors_of(tiny_llama), tensors_of(packed_tiny)

    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)


def test_transformers_loads_a_packed_model(tiny_llama: Path, packed_tiny: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM

    ids = torch.tensor([[1, 5, 9]])
    with torch.inference_mode():
        expected = LlamaForCausalLM.from_pretrained(tiny_llama)(ids).logits
        found = LlamaForCausalLM.from_pretrained(packed_tiny)(ids).logits

    assert expected.equal(found)


def test_data_begin_at_a_page_and_every_tensor_at_64_bytes(packed_tiny: Path) -> None:
    data_begin, header = header_of(packed_tiny)
    offsets = {k: v["data_offsets"] for k, v in header.items() if k != "__metadata__"}

    assert data_begin % 4096 == 0
    assert any(name.startswith(FILLER_PREFIX) for name in offsets)
    assert all(begin % 64 == 0 for name, (begin, _) in offsets.items() if not name.startswith("__"))


def test_tensors_lie_in_the_order_of_first_use(packed_tiny: Path) -> None:
    names = [
        t.name
        for t in resolve(FileSource(packed_tiny)).tensors
        if not t.name.startswith(FILLER_PREFIX)
    ]

    assert names[0] == "model.embed_tokens.weight"
    assert names[-1] == "model.norm.weight"
    layers = [name.split(".")[2] for name in names if ".layers." in name]
    assert layers == sorted(layers)
    first = [name.removeprefix("model.layers.0.") for name in names if ".layers.0." in name]
    assert first[:3] == [
        "input_layernorm.weight",
        "self_attn.q_proj.weight",
        "self_attn.q_proj.bias",
    ]
    assert first[-1] == "mlp.down_proj.bias"


def test_an_encoder_is_laid_out_in_the_order_of_first_use(tmp_path: Path) -> None:
    folder = tiny_model.write_bert(tmp_path / "bert")

    manifest = pack(folder, tmp_path / "packed")

    names = [tensor.name for tensor in engine_tensors(manifest)]
    assert names[0] == "embeddings.word_embeddings.weight"
    assert [name.split(".")[0] for name in names[-2:]] == ["pooler", "pooler"]
    layers = [name.split(".")[2] for name in names if name.startswith("encoder.layer.")]
    assert layers == sorted(layers)
    first = [name.split(".", 3)[3] for name in names if name.startswith("encoder.layer.0.")]
    assert first[0] == "attention.self.query.weight"
    assert first[-1] == "output.LayerNorm.bias"


def test_packing_is_deterministic(tiny_llama: Path, tmp_path: Path) -> None:
    manifests = [pack(tiny_llama, tmp_path / name) for name in ("one", "two")]

    assert manifests[0].digest == manifests[1].digest
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {path.name for path in (tmp_path / "two").iterdir()}
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_large_tensors_and_unusual_dtypes_keep_their_bits(tiny_llama: Path, tmp_path: Path) -> None:
    """Tensors that cross chunks, fp8, booleans and scalars in shards, as a packed checkpoint."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(5)
    extra = {
        "large.crossing": torch.randn(9, 1 << 20),
        "fp8.weight": torch.randn(30, 7).to(torch.float8_e4m3fn),
        "fp8.other": torch.randn(3).to(torch.float8_e5m2),
        "fp8.scale": torch.tensor(0.5),
        "mask": torch.rand(13) > 0.5,
        "empty": torch.empty(0, 4),
    }
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    save_file(extra, folder / "model-00002-of-00002.safetensors")
    shards = sorted(folder.glob("model-*"))
    before = {name: tensor for path in shards for name, tensor in load_file(path).items()}
    weight_map = {name: path.name for path in shards for name in load_file(path)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    manifest = pack(folder, tmp_path / "packed")

    assert len(manifest.chunks) > 2
    ours = stoker.load_tensors(tmp_path / "packed")
    theirs = tensors_of(tmp_path / "packed")
    assert before.keys() == ours.keys() == theirs.keys()
    for name, tensor in before.items():
        for found in (ours[name], theirs[name]):
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
            assert found.reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))
    data_begin, header = header_of(tmp_path / "packed")
    assert data_begin % 4096 == 0
    assert all(header[name]["data_offsets"][0] % 64 == 0 for name in before)


def test_the_manifest_says_how_a_split_would_cut(packed_tiny: Path) -> None:
    manifest = decode((packed_tiny / MANIFEST_NAME).read_bytes())
    cut = {t.name: t.tensor_parallel_dimension for t in manifest.tensors}

    assert cut["model.layers.0.self_attn.q_proj.weight"] == 0
    assert cut["model.layers.0.self_attn.q_proj.bias"] == 0
    assert cut["model.layers.1.mlp.down_proj.weight"] == 1
    assert cut["model.layers.1.self_attn.o_proj.bias"] is None
    assert cut["model.norm.weight"] is None


def test_a_tied_tensor_that_is_stored_twice_is_kept_once(tiny_llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = tmp_path / "twice"
    shutil.copytree(tiny_llama, folder)
    tensors = tensors_of(tiny_llama)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["never.used"] = tensors["model.norm.weight"].clone()
    save_file(tensors, folder / "model.safetensors")

    manifest = pack(folder, tmp_path / "packed")

    names = [t.name for t in manifest.tensors if not t.name.startswith(FILLER_PREFIX)]
    assert "lm_head.weight" not in names
    assert names[-1] == "never.used"


def test_shards_become_one_file(tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    sharded = tmp_path / "sharded"
    LlamaForCausalLM.from_pretrained(tiny_llama).save_pretrained(sharded, max_shard_size="50KB")
    assert (sharded / "model.safetensors.index.json").exists()

    pack(sharded, tmp_path / "packed")

    assert not (tmp_path / "packed" / "model.safetensors.index.json").exists()
    before, after = tensors_of(tiny_llama), tensors_of(tmp_path / "packed")
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)


def test_packing_a_packed_model_changes_nothing(packed_tiny: Path, tmp_path: Path) -> None:
    pack(packed_tiny, tmp_path / "again")

    for name in ("model.safetensors", MANIFEST_NAME):
        assert (tmp_path / "again" / name).read_bytes() == (packed_tiny / name).read_bytes()


def test_progress_counts_every_weight_byte(tiny_llama: Path, tmp_path: Path) -> None:
    counted: list[int] = []

    manifest = pack(tiny_llama, tmp_path / "packed", counted.append)

    sizes = [t.end - t.begin for t in manifest.tensors if not t.name.startswith(FILLER_PREFIX)]
    assert sum(counted) == sum(sizes)


def test_a_folder_that_holds_something_is_not_overwritten(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")

    with pytest.raises(CheckpointError, match="absent or an empty folder"):
        pack(tiny_llama, tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "keep"

    (tmp_path / "out" / "mine").unlink()
    pack(tiny_llama, tmp_path / "out")


def test_a_model_that_cannot_be_built_is_refused_with_the_remedy(tmp_path: Path) -> None:
    folder = checkpoints.plain(tmp_path / "m")

    with pytest.raises(CheckpointError, match="can build and run") as caught:
        pack(folder, tmp_path / "out")

    assert "unpacked" in caught.value.remedy
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_an_interrupted_pack_leaves_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(tiny_llama, tmp_path / "out", interrupt)
    assert list(tmp_path.iterdir()) == []


def test_the_header_reads_as_the_manifest_says(packed_tiny: Path) -> None:
    manifest = resolve(FileSource(packed_tiny))

    with safe_open(packed_tiny / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        assert sorted(file.keys()) == sorted(t.name for t in manifest.tensors)
