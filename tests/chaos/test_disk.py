"""Disks that are full, that fail, and that read less than they were asked for."""

from __future__ import annotations

import contextlib
import hashlib
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import checkpoints, read_faults
from harness.caches import GIB, WAIT_SECONDS, bytes_of, finish
from harness.fake_source import FakeSource
from stoker.native import CHUNK_BYTES, Pool
from stoker.placement.errors import StorageFull
from stoker.runtime.checkpoint.settings import CheckpointSettings
from stoker.runtime.checkpoint.tiers import CheckpointCache

DISK_BYTES = 64 << 20
MEBIBYTES = 40  # three chunks
Rounds = Callable[[int, int], int]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    options = f"size={DISK_BYTES}"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", path], check=True)


def start(disk: Path, source: FakeSource) -> CheckpointCache:
    return CheckpointCache(
        disk / "ssd",
        GIB,
        Pool(8 * CHUNK_BYTES),
        CheckpointSettings(),
        source_opener=lambda uri: source,
    )


def test_a_load_streams_past_a_full_disk_and_later_loads_use_what_fitted(
    tmp_path: Path, small_disk: Path
) -> None:
    source = FakeSource.of_folder(checkpoints.plain(tmp_path / "m", 100))
    weights = source.files["model.safetensors"]
    kept = 0
    for at_least in (0, 3):
        assert kept >= at_least
        cache = start(small_disk, source)
        ref = cache.resolve(source.uri)
        source.reads.clear()
        residency = cache.open(ref)
        residency.wait(WAIT_SECONDS)
        finish(cache)
        assert bytes_of(cache, residency) == weights
        assert len({offset // CHUNK_BYTES for _, offset in source.reads}) == 7 - kept
        cache.close()

        files = [path for path in small_disk.rglob("chunks/*") if path.is_file()]
        for path in files:  # whole under its own name, or not there
            at = int(path.name) * CHUNK_BYTES
            assert path.read_bytes() == weights[at : at + CHUNK_BYTES]
        kept = len(files)
    assert list(small_disk.rglob("*.tmp*")) == []


def test_a_disk_without_room_for_a_configuration_is_a_typed_error(
    tmp_path: Path, small_disk: Path
) -> None:
    source = FakeSource.of_folder(checkpoints.plain(tmp_path / "m", 17))
    filler = small_disk / "filler"
    cache = start(small_disk, source)
    ref = cache.resolve(source.uri)
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass

    with pytest.raises(StorageFull, match="found: a full disk"):
        cache.open(ref)

    assert list((small_disk / "ssd").iterdir()) == []
    filler.unlink()
    residency = cache.open(ref)
    residency.wait(WAIT_SECONDS)
    assert bytes_of(cache, residency) == source.files["model.safetensors"]
    finish(cache)
    cache.close()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return read_faults.build(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.plain(tmp_path_factory.mktemp("model") / "m", MEBIBYTES)


def digest_of(model: Path) -> str:
    return hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.timeout(600)
def test_short_and_interrupted_reads_are_gone_on_with(
    tmp_path: Path, library: Path, model: Path, rounds: Rounds
) -> None:
    for seed in range(rounds(1, 50)):
        faults = {"PATH": "model.safetensors", "SEED": str(seed)}
        outcome = read_faults.run(library, faults, tmp_path / "ssd", model.as_uri())
        assert outcome["sha256"] == digest_of(model), seed
        assert outcome["injected"] > 3


@pytest.mark.timeout(600)
def test_a_failing_disk_under_a_local_model_is_an_error_with_path_and_offset(
    tmp_path: Path, library: Path, model: Path, rounds: Rounds
) -> None:
    weights = model / "model.safetensors"
    chance = random.Random(1)
    for _ in range(rounds(1, 50)):
        offset = chance.randrange(1 << 20, weights.stat().st_size)
        faults = {"PATH": "model.safetensors", "OFFSET": str(offset)}
        outcome = read_faults.run(library, faults, tmp_path / "ssd", model.as_uri())
        assert outcome["injected"] > 0
        assert outcome["code"] == "source_unavailable"
        assert f"{weights}, found: cannot read at offset " in outcome["cause"]
        said = int(outcome["cause"].split("offset ")[1].split(":")[0])
        assert said <= offset < said + CHUNK_BYTES


@pytest.mark.timeout(600)
def test_a_failing_disk_under_a_copy_sends_one_chunk_back_to_its_source(
    tmp_path: Path, library: Path, model: Path, rounds: Rounds
) -> None:
    ssd_dir = tmp_path / "ssd"
    read_faults.run(library, {}, ssd_dir, "s3://fake/model", model)
    chance = random.Random(2)
    for _ in range(rounds(1, 50)):
        ordinal, offset = chance.randrange(3), chance.randrange(1 << 20)
        faults = {"PATH": f"chunks/{ordinal}", "OFFSET": str(offset)}
        outcome = read_faults.run(library, faults, ssd_dir, "s3://fake/model", model)
        assert outcome["injected"] > 0
        assert outcome["sha256"] == digest_of(model)
        assert set(outcome["fetched"]) == {ordinal}
    healthy = read_faults.run(library, {}, ssd_dir, "s3://fake/model", model)
    assert (healthy["fetched"], healthy["sha256"]) == ([], digest_of(model))
