"""Checkpoints on their way to a device, through a window, over a driver that checks every call."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import stoker
from harness import checkpoints
from harness import s3 as s3_harness
from harness.fake_cuda import FakeCuda, checked
from stoker.deploy.s3server import S3Server
from stoker.native import CHUNK_BYTES
from stoker.placement.errors import BadRequest, ChunkCorrupt, DeviceFailed, StorageFull
from stoker.runtime.checkpoint.bring import WINDOW_CHUNKS, Report, bring, bring_to_device, origin_of
from stoker.runtime.checkpoint.manifest import Manifest
from stoker.runtime.checkpoint.resolve import resolve
from stoker.runtime.checkpoint.source import Source, open_model, open_source

OUT_OF_MEMORY = 2
LAUNCH_FAILED = 719


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> FakeCuda:
    return FakeCuda(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def cuda(driver: FakeCuda) -> Iterator[FakeCuda]:
    with checked(driver):
        yield driver


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More chunks than the window has."""
    folder = checkpoints.plain(tmp_path_factory.mktemp("device") / "model", 170)
    return checkpoints.packed(folder)


def opened(folder: Path) -> tuple[Source, Manifest]:
    source = open_source(folder.as_uri())
    return source, resolve(source)


def test_a_folder_reaches_the_device_through_a_window(cuda: FakeCuda, folder: Path) -> None:
    source, manifest = opened(folder)
    origin = origin_of(source, manifest)
    assert len(manifest.chunks) > WINDOW_CHUNKS
    told: list[tuple[int, int]] = []
    report = Report(lambda done, total: told.append((done, total)), manifest.weight_bytes)

    memory = bring_to_device(origin, manifest.chunks, 1, report=report, driver=cuda.path)

    assert cuda.read(memory.address, len(memory)) == bytes(bring(origin, manifest.chunks))
    assert cuda.registered_peak_bytes == WINDOW_CHUNKS * CHUNK_BYTES
    assert told[-1] == (manifest.weight_bytes, manifest.weight_bytes)


def test_s3_reaches_the_device_through_a_window(
    cuda: FakeCuda, folder: Path, s3_environment: S3Server
) -> None:
    uri = s3_harness.upload(s3_environment, folder, "to-device")
    source = open_model(uri)
    manifest = resolve(source)
    origin = origin_of(source, manifest)

    memory = bring_to_device(origin, manifest.chunks, 0, driver=cuda.path)

    expected = (folder / "model.safetensors").read_bytes()
    assert cuda.read(memory.address, len(memory)) == expected


def test_a_damaged_chunk_never_counts(cuda: FakeCuda, tmp_path: Path) -> None:
    folder = checkpoints.packed(checkpoints.plain(tmp_path / "model", 40))
    source, manifest = opened(folder)
    path = folder / "model.safetensors"
    payload = bytearray(path.read_bytes())
    payload[CHUNK_BYTES + 7] ^= 1
    path.write_bytes(payload)

    with pytest.raises(ChunkCorrupt) as caught:
        bring_to_device(origin_of(source, manifest), manifest.chunks, 0, driver=cuda.path)
    assert caught.value.details["offset"] == CHUNK_BYTES


def test_a_device_without_room_is_told_as_such(cuda: FakeCuda, folder: Path) -> None:
    source, manifest = opened(folder)
    cuda.fail("cuMemAlloc_v2", 1, OUT_OF_MEMORY)
    with pytest.raises(StorageFull, match="CUDA device 0"):
        bring_to_device(origin_of(source, manifest), manifest.chunks, 0, driver=cuda.path)


def test_a_copy_that_fails_ends_the_load(cuda: FakeCuda, folder: Path) -> None:
    source, manifest = opened(folder)
    cuda.fail("cuMemcpyHtoDAsync_v2", 3, LAUNCH_FAILED)
    with pytest.raises(DeviceFailed, match="CUDA device 0"):
        bring_to_device(origin_of(source, manifest), manifest.chunks, 0, driver=cuda.path)


def test_a_device_that_is_not_there_is_refused_by_name(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    path = folder / "model.safetensors"
    with pytest.raises(BadRequest, match="cuda:3"):
        stoker.load_file(path, device="cuda:3")
    with pytest.raises(BadRequest, match="nonsense"):
        stoker.load_file(path, device="nonsense")
    source, manifest = opened(folder)
    with pytest.raises(DeviceFailed, match="driver"):
        bring_to_device(origin_of(source, manifest), manifest.chunks, 0, driver="libno-such.so")
