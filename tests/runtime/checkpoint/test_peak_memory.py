"""What a load takes at most, seen by the kernel in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stoker
from harness import peak_memory

MIB = 1 << 20
TENSOR_MIB = 64
TENSORS = 16


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A float32 checkpoint of 1 GiB, and a tiny one to warm up with."""
    folder = tmp_path_factory.mktemp("peak")
    tensor = torch.randn(TENSOR_MIB * MIB // 4)
    stoker.save_file({f"t{n}": tensor for n in range(TENSORS)}, folder / "model.safetensors")
    stoker.save_file({"t": tensor[:1000].clone()}, folder / "small.safetensors")
    return folder / "model.safetensors", folder / "small.safetensors"


def peak_bytes(files: tuple[Path, Path], *, cold: bool, borrow: bool, dtype: str = "none") -> int:
    model, small = files
    with open(model, "rb") as file:
        if cold:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            while file.read(16 * MIB):
                pass
    ran = subprocess.run(
        [
            *(sys.executable, str(Path(peak_memory.__file__)), str(model), str(small)),
            *("yes" if borrow else "no", dtype),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return int(json.loads(ran.stdout)["peak_bytes"])


@pytest.mark.parametrize("cold", [True, False])
@pytest.mark.parametrize("borrow", [True, False])
def test_a_load_takes_the_model_and_64_mib(
    files: tuple[Path, Path], cold: bool, borrow: bool
) -> None:
    assert peak_bytes(files, cold=cold, borrow=borrow) <= files[0].stat().st_size + 64 * MIB


@pytest.mark.parametrize("cold", [True, False])
def test_a_cast_takes_its_result_and_a_window_of_the_file(
    files: tuple[Path, Path], cold: bool
) -> None:
    result = files[0].stat().st_size // 2

    found = peak_bytes(files, cold=cold, borrow=True, dtype="bfloat16")

    assert found <= result + (128 + TENSOR_MIB + 64) * MIB
