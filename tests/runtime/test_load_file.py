from __future__ import annotations

import gc
import json
import os
import struct
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import stoker
from stoker.native import HeaderError, Region
from stoker.placement.errors import (
    CheckpointError,
    CheckpointForbidden,
    CheckpointMissing,
    HeaderInvalid,
    SourceUnavailable,
    StokerError,
)
from stoker.runtime.checkpoint import bring
from stoker.runtime.checkpoint import load_file as module

DTYPES = [
    "BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E5M2FNUZ", "F8_E4M3FNUZ", "F8_E8M0", "F4",
    "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64",
]  # fmt: skip
BITS = {"F4": 4, "C64": 64, "BOOL": 8, "BF16": 16}


def bits_of(dtype: str) -> int:
    digits = "".join(character for character in dtype.split("_")[0] if character.isdigit())
    return BITS.get(dtype, int(digits or 0))


def write(path: Path, entries: list[tuple[str, str, list[int]]], padding: int = 0) -> Path:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, dtype, shape in entries:
        count = bits_of(dtype)
        for dimension in shape:
            count *= dimension
        octets = os.urandom(count // 8)
        if dtype == "BOOL":
            octets = bytes(octet & 1 for octet in octets)
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(data), len(data) + len(octets)],
        }
        data += octets
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 + padding)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def assert_same_as_safetensors(path: Path) -> dict[str, torch.Tensor]:
    ours, theirs = module.load_file(path), safetensors.torch.load_file(path)
    assert list(ours) == list(theirs)
    for name, expected in theirs.items():
        found = ours[name]
        assert (found.dtype, found.shape, found.stride()) == (
            expected.dtype,
            expected.shape,
            expected.stride(),
        )
        octets = expected.flatten().view(torch.uint8) if expected.numel() else None
        if octets is not None:
            assert torch.equal(found.flatten().view(torch.uint8), octets), name
    return ours


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_loads_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    shapes = [("matrix", dtype, [6, 4]), ("empty", dtype, [0, 4]), ("vector", dtype, [2])]
    assert_same_as_safetensors(write(tmp_path / "file.safetensors", shapes))


def test_scalars_and_empty_tensors_keep_their_shape(tmp_path: Path) -> None:
    entries = [("scalar", "F32", []), ("none", "I64", [3, 0, 2]), ("one", "BF16", [1])]
    loaded = assert_same_as_safetensors(write(tmp_path / "file.safetensors", entries))
    assert loaded["scalar"].shape == ()
    assert loaded["none"].shape == (3, 0, 2)


def test_a_file_without_tensors_is_an_empty_dictionary(tmp_path: Path) -> None:
    assert assert_same_as_safetensors(write(tmp_path / "file.safetensors", [])) == {}


@pytest.mark.parametrize("padding", [1, 2, 4])
def test_tensors_at_odd_offsets_are_aligned_copies(tmp_path: Path, padding: int) -> None:
    entries = [
        ("half", "F16", [5]),
        ("double", "F64", [3]),
        ("octet", "U8", [1]),
        ("f", "F32", [7]),
    ]
    loaded = assert_same_as_safetensors(write(tmp_path / "file.safetensors", entries, padding))
    assert all(tensor.data_ptr() % tensor.itemsize == 0 for tensor in loaded.values())


def test_a_file_of_several_chunks_loads_bit_for_bit(tmp_path: Path) -> None:
    entries = [("a", "F32", [3, 1_500_000]), ("b", "U8", [4097]), ("c", "BF16", [9_000_000])]
    assert_same_as_safetensors(write(tmp_path / "file.safetensors", entries))


def test_the_package_offers_it() -> None:
    assert stoker.load_file is module.load_file


def test_tensors_are_writable_without_a_warning_and_leave_the_file_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "file.safetensors", [("a", "F32", [4])])
    before = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = module.load_file(path)["a"]
    tensor.zero_()
    assert torch.equal(tensor, torch.zeros(4))
    assert path.read_bytes() == before


def test_a_tensor_keeps_its_memory_alive_and_the_last_one_frees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    regions: list[weakref.ref[Any]] = []

    class Watched(Region):
        def __init__(self, byte_count: int) -> None:
            super().__init__(byte_count)
            regions.append(weakref.ref(self))

    monkeypatch.setattr(bring, "Region", Watched)
    path = write(tmp_path / "file.safetensors", [("a", "U8", [64]), ("b", "U8", [64])])
    expected = safetensors.torch.load_file(path)["b"]
    kept = module.load_file(path)["b"]
    gc.collect()
    assert torch.equal(kept, expected)
    assert regions[0]() is not None
    del kept
    gc.collect()
    assert regions[0]() is None


def test_another_device_gets_its_own_tensors(tmp_path: Path) -> None:
    path = write(tmp_path / "file.safetensors", [("a", "F32", [4])])
    assert module.load_file(path, device="meta")["a"].device == torch.device("meta")


def test_a_missing_file_names_its_path(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissing, match=r"none\.safetensors"):
        module.load_file(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointMissing):
        module.load_file(tmp_path)


@pytest.mark.parametrize(
    ("code", "expected"),
    [(13, CheckpointForbidden), (5, SourceUnavailable)],
)
def test_a_failing_disk_is_told_as_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, expected: type[StokerError]
) -> None:
    path = write(tmp_path / "file.safetensors", [("a", "F32", [4])])

    def failing(*arguments: object) -> None:
        raise OSError(code, "told by the disk", str(path))

    monkeypatch.setattr(bring, "ReadRequest", failing)
    with pytest.raises(expected, match="told by the disk"):
        module.load_file(path)


def test_a_malformed_header_is_refused_with_its_kind(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(struct.pack("<Q", 3) + b"{x}")
    with pytest.raises(HeaderInvalid) as caught:
        module.load_file(path)
    assert caught.value.details == {"kind": "json", "offset": 9}
    assert isinstance(caught.value.__cause__, HeaderError)
    path.write_bytes(b"1234")
    with pytest.raises(HeaderInvalid):
        module.load_file(path)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "file.safetensors", [("a", "F32", [4])])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(HeaderInvalid):
        module.load_file(path)


@pytest.mark.parametrize(("dtype", "shape"), [("F6_E2M3", [4]), ("F4", [2, 1])])
def test_what_pytorch_cannot_hold_is_refused(tmp_path: Path, dtype: str, shape: list[int]) -> None:
    path = write(tmp_path / "file.safetensors", [("a", dtype, shape)])
    with pytest.raises(CheckpointError):
        module.load_file(path)
