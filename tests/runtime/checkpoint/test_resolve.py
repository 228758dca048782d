from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import checkpoints
from harness.fake_source import FakeSource
from stoker.placement.errors import (
    CheckpointChanged,
    CheckpointError,
    CheckpointMissing,
    HeaderInvalid,
    PickleRefused,
)
from stoker.runtime.checkpoint.manifest import CHUNK_BYTES
from stoker.runtime.checkpoint.resolve import layer, resolve


def test_a_plain_folder_is_pinned_without_reading_its_weights(tmp_path: Path) -> None:
    source = FakeSource.of_folder(checkpoints.plain(tmp_path / "m", mebibytes=17))

    manifest = resolve(source)

    assert not manifest.packed
    assert [entry.name for entry in manifest.files] == ["config.json", "tokenizer.json"]
    assert [len(weight.chunks) for weight in manifest.weights] == [2]
    assert {t.name for t in manifest.tensors} == {"layers.0.weight", "norm.weight"}
    assert sum(offset == 0 for _, offset in source.reads) == len(source.reads) == 1


def test_shards_are_taken_from_the_index(tmp_path: Path) -> None:
    manifest = resolve(FakeSource.of_folder(checkpoints.sharded(tmp_path / "m")))

    assert [weight.name[:11] for weight in manifest.weights] == ["model-00001", "model-00002"]
    assert manifest.file_bases == (0, 2 * CHUNK_BYTES)


def test_the_digest_changes_with_the_weights(tmp_path: Path) -> None:
    source = FakeSource.of_folder(checkpoints.plain(tmp_path / "m"))
    before = resolve(source).digest

    assert resolve(source).digest == before
    source.files["model.safetensors"] = source.files["model.safetensors"][:-1] + b"x"
    assert resolve(source).digest != before


def test_pickles_are_refused_with_the_remedy() -> None:
    source = FakeSource({"config.json": b"{}", "pytorch_model.bin": b"\x80", "x.pt": b""})

    with pytest.raises(PickleRefused, match=r"pytorch_model\.bin, x\.pt") as caught:
        resolve(source)

    assert "Convert them with safetensors" in caught.value.remedy


def test_pickles_beside_safetensors_are_ignored(tmp_path: Path) -> None:
    source = FakeSource.of_folder(checkpoints.plain(tmp_path / "m"))
    source.files["pytorch_model.bin"] = b"\x80"
    source.files["tokenizer.pkl"] = b"\x80"

    names = [entry.name for entry in resolve(source).files]

    assert names == ["config.json", "tokenizer.json"]


def test_a_folder_without_a_model_is_told_what_it_holds() -> None:
    with pytest.raises(CheckpointError, match=r"found: README\.md, config\.json"):
        resolve(FakeSource({"config.json": b"{}", "README.md": b"hi"}))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x01",
        (1 << 62).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (9).to_bytes(8, "little") + b'{"a": {}}',
    ],
)
def test_a_bad_header_is_refused_at_resolve(payload: bytes) -> None:
    with pytest.raises(HeaderInvalid, match=r"model\.safetensors"):
        resolve(FakeSource({"model.safetensors": payload}))


def test_a_header_longer_than_the_first_read_is_read_whole() -> None:
    entry = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    text = json.dumps({"x": entry, "__metadata__": {"pad": "p" * 300_000}}).encode()
    payload = len(text).to_bytes(8, "little") + text + b"!"

    manifest = resolve(FakeSource({"model.safetensors": payload}))

    assert [(t.begin, t.end) for t in manifest.tensors] == [(len(payload) - 1, len(payload))]


@pytest.mark.parametrize(
    ("index", "error"),
    [
        (b"not json", CheckpointError),
        (b'{"weight_map": {"a": "../../etc/passwd"}}', CheckpointError),
        (b'{"weight_map": {"a": "absent.safetensors"}}', CheckpointMissing),
        (b'{"weight_map": {"a": 1}}', CheckpointError),
    ],
)
def test_a_bad_index_is_refused(index: bytes, error: type[CheckpointError]) -> None:
    with pytest.raises(error):
        resolve(FakeSource({"model.safetensors.index.json": index}))


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = checkpoints.sharded(tmp_path / "m", mebibytes=1)
    first, second = sorted(folder.glob("model-*"))
    second.write_bytes(first.read_bytes())

    with pytest.raises(CheckpointError, match="tensor name twice"):
        resolve(FakeSource.of_folder(folder))


def test_a_packed_checkpoint_must_be_whole(packed_tiny: Path) -> None:
    source = FakeSource.of_folder(packed_tiny)
    assert resolve(source).packed

    weights = source.files.pop("model.safetensors")
    with pytest.raises(CheckpointMissing, match=r"model\.safetensors"):
        resolve(source)
    source.files["model.safetensors"] = weights[:-1]
    with pytest.raises(CheckpointChanged, match="bytes in model"):
        resolve(source)


def test_too_many_small_files_are_refused(tmp_path: Path) -> None:
    source = FakeSource.of_folder(checkpoints.plain(tmp_path / "m"))
    source.files |= {f"n{i}.json": b"{}" for i in range(300)}

    with pytest.raises(CheckpointError, match="at most 256"):
        resolve(source)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("model.layers.12.mlp.up_proj.weight", 12),
        ("transformer.h.3.ln_1.weight", 3),
        ("encoder.layer.0.output.dense.bias", 0),
        ("model.embed_tokens.weight", None),
    ],
)
def test_the_layer_is_read_from_the_name(name: str, number: int | None) -> None:
    assert layer(name) == number
