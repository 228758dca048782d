"""What `save_file` writes is read by everybody, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

import stoker
from stoker.placement.errors import BadRequest, StorageFull
from stoker.runtime.checkpoint.load_file import load_file
from stoker.runtime.checkpoint.save_file import save_file
from stoker.runtime.checkpoint.tensors import DTYPES


def octets(tensor: torch.Tensor) -> bytes:
    if not tensor.numel():
        return b""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def random_tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    count = torch.Size(shape).numel() * dtype.itemsize
    drawn = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8)
    return drawn.view(dtype).view(shape)


def assert_read_back(path: Path, expected: dict[str, torch.Tensor]) -> None:
    for read in (load_file, safetensors.torch.load_file):
        found = read(path)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
            assert octets(found[name]) == octets(tensor), name


def offsets(path: Path) -> dict[str, int]:
    """Where each tensor begins in the file."""
    payload = path.read_bytes()
    length = int.from_bytes(payload[:8], "little")
    entries = json.loads(payload[8 : 8 + length])
    del entries["__metadata__"]
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in entries.items()}


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_dtype_is_read_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    dtype = DTYPES[name]
    tensors = {"matrix": random_tensor(dtype, 6, 4), "empty": torch.empty((0, 4), dtype=dtype)}
    save_file(tensors, tmp_path / "file.safetensors")

    assert_read_back(tmp_path / "file.safetensors", tensors)


def test_data_is_aligned_and_no_reader_finds_more_than_was_saved(tmp_path: Path) -> None:
    tensors = {
        "odd": random_tensor(torch.uint8, 3),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "halves": random_tensor(torch.float16, 5),
        "weight": random_tensor(torch.float32, 16, 3),
        "floats": random_tensor(torch.float32, 7),
        "bias": random_tensor(torch.bfloat16, 32),
    }
    path = tmp_path / "file.safetensors"
    save_file(tensors, path)

    found = offsets(path)
    assert min(found.values()) % 4096 == 0
    assert [name for name in found if found[name] % 64 == 0][:2] == ["weight", "bias"]
    assert all(found[name] % tensors[name].itemsize == 0 for name in found)
    assert_read_back(path, tensors)


def test_views_are_saved_as_they_look(tmp_path: Path) -> None:
    base = random_tensor(torch.float32, 8, 8).requires_grad_()
    tensors = {"transposed": base.T, "strided": base[::2, 1:3], "whole": base}
    save_file(tensors, tmp_path / "file.safetensors")

    assert_read_back(tmp_path / "file.safetensors", {k: v.detach() for k, v in tensors.items()})


def test_a_conjugate_is_saved_as_its_values(tmp_path: Path) -> None:
    lazy = torch.tensor([1 + 2j, 3 - 4j]).conj()
    save_file({"a": lazy}, tmp_path / "file.safetensors")

    assert torch.equal(load_file(tmp_path / "file.safetensors")["a"], lazy.resolve_conj())


def test_metadata_is_kept_beside_the_format(tmp_path: Path) -> None:
    save_file({}, tmp_path / "file.safetensors", {"author": "me"})

    with safetensors.safe_open(tmp_path / "file.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "author": "me"}


def test_an_older_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file({"a": torch.zeros(4)}, path)
    held = load_file(path)["a"]
    save_file({"b": torch.ones(2)}, str(path))

    assert list(load_file(path)) == ["b"]
    assert torch.equal(held, torch.zeros(4))
    assert [each.name for each in tmp_path.iterdir()] == ["file.safetensors"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "taken.safetensors"
    folder.mkdir()

    with pytest.raises(StorageFull, match=r"taken\.safetensors"):
        save_file({"a": torch.zeros(4)}, folder)
    assert [each.name for each in tmp_path.iterdir()] == ["taken.safetensors"]
    with pytest.raises(StorageFull, match="No such file"):
        save_file({}, tmp_path / "absent" / "file.safetensors")


@pytest.mark.parametrize(
    "tensors",
    [
        {"__metadata__": torch.zeros(1)},
        {"a": torch.zeros(2, 2).to_sparse()},
        {"a": torch.empty(2, device="meta")},
        {"a": torch.zeros(2, dtype=torch.complex128)},
        {"a": [1.0]},
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path: Path, tensors: dict[str, object]) -> None:
    with pytest.raises(BadRequest, match="Expected"):
        save_file(tensors, tmp_path / "file.safetensors")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_metadata_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="metadata of strings"):
        save_file({}, tmp_path / "file.safetensors", {"epoch": 3})  # type: ignore[dict-item]


def test_the_package_offers_it() -> None:
    assert stoker.save_file is save_file
