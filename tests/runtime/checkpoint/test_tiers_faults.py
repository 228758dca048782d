"""What the tiers do when something breaks."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import checkpoints
from harness import s3 as s3_harness
from harness.caches import (
    WAIT_SECONDS,
    MakeCache,
    bytes_of,
    fake,
    finish,
    hold_weights,
    loaded,
    opener,
)
from harness.fake_source import FakeSource
from stoker.deploy.s3server import S3Server
from stoker.native import CHUNK_BYTES, Load
from stoker.placement.errors import (
    CheckpointChanged,
    CheckpointMissing,
    ChunkCorrupt,
    DeadlineExceeded,
    SourceUnavailable,
    StokerError,
    StorageFull,
)
from stoker.runtime.checkpoint import fetch
from stoker.runtime.checkpoint.settings import CheckpointSettings
from stoker.runtime.checkpoint.tiers import Resident


def test_only_what_the_ssd_lacks_is_fetched(tmp_path: Path, make_cache: MakeCache) -> None:
    source = fake(tmp_path)
    cache = make_cache(opener(m=source))
    ref, _ = loaded(cache, "s3://fake/m")
    finish(cache)
    (tmp_path / "ssd" / ref.digest / "chunks" / "1").unlink()
    source.reads.clear()

    again = make_cache(opener(m=source))
    residency = again.open(ref)
    residency.wait(WAIT_SECONDS)

    assert source.reads == [("model.safetensors", CHUNK_BYTES)]
    assert bytes_of(again, residency) == source.files["model.safetensors"]


def test_a_corrupt_chunk_on_the_ssd_is_deleted_and_fetched_again(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    source = fake(tmp_path, mebibytes=40)
    cache = make_cache(opener(m=source))
    ref, _ = loaded(cache, "s3://fake/m")
    finish(cache)
    chunk = tmp_path / "ssd" / ref.digest / "chunks" / "1"
    good = chunk.read_bytes()
    chunk.write_bytes(b"\0" * 10 + good[10:])
    source.reads.clear()

    again = make_cache(opener(m=source))
    residency = again.open(ref)
    residency.wait(WAIT_SECONDS)
    finish(again)

    assert bytes_of(again, residency) == source.files["model.safetensors"]
    assert {offset // CHUNK_BYTES for _, offset in source.reads} == {1}
    assert len(source.reads) == len(set(source.reads))
    assert chunk.read_bytes() == good


def test_a_corrupt_chunk_is_refused_with_both_digests(
    packed_tiny: Path, make_cache: MakeCache
) -> None:
    source = FakeSource.of_folder(packed_tiny)
    cache = make_cache(opener(m=source))
    ref = cache.resolve("s3://fake/m")
    weights = source.files["model.safetensors"]
    source.files["model.safetensors"] = weights[:5000] + b"!" + weights[5001:]

    with pytest.raises(ChunkCorrupt, match=r"offset 0 of model\.safetensors") as caught:
        cache.open(ref).wait(WAIT_SECONDS)

    details = caught.value.details
    assert len(details["expected"]) == len(details["found"]) == 32
    assert details["expected"] != details["found"]
    assert details["expected"] in caught.value.cause
    assert details["found"] in caught.value.cause


def test_a_corrupt_small_file_is_refused(packed_tiny: Path, make_cache: MakeCache) -> None:
    source = FakeSource.of_folder(packed_tiny)
    cache = make_cache(opener(m=source))
    ref = cache.resolve("s3://fake/m")
    source.files["config.json"] = b"X" + source.files["config.json"][1:]

    with pytest.raises(ChunkCorrupt, match=r"SHA-256 .* of config\.json"):
        cache.open(ref)
    assert list((cache._ssd._directory).iterdir()) == []


@pytest.mark.parametrize("name", ["files/config.json", "files/tokenizer.json", "layout.json"])
def test_a_file_that_rots_on_the_ssd_is_replaced_at_the_next_open(
    tmp_path: Path, make_cache: MakeCache, name: str
) -> None:
    source = fake(tmp_path)
    cache = make_cache(opener(m=source))
    ref, _ = loaded(cache, "s3://fake/m")
    path = tmp_path / "ssd" / ref.digest / name
    good = path.read_bytes()
    path.write_bytes(bytes([good[0] ^ 1]) + good[1:])

    assert cache.open(ref).resident

    assert path.read_bytes() == good


def test_a_file_that_rots_on_the_ssd_and_cannot_be_replaced_is_not_served(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    source = fake(tmp_path)
    cache = make_cache(opener(m=source))
    ref, residency = loaded(cache, "s3://fake/m")
    (residency.files_dir / "config.json").unlink()
    source.fail_with(SourceUnavailable("The bucket is gone."))

    with pytest.raises(SourceUnavailable):
        cache.open(ref)

    residency.close()
    assert [entry.pins for entry in cache._dram.entries()] == [0]


@pytest.mark.parametrize("make", [checkpoints.plain, checkpoints.sharded])
def test_a_model_larger_than_the_whole_memory_is_refused_before_a_byte_moves(
    tmp_path: Path, make_cache: MakeCache, make: Callable[[Path, int], Path]
) -> None:
    # Two shards begin a chunk each: 40 MiB as one file, and 17 + 1 in two, need three chunks.
    source = FakeSource.of_folder(make(tmp_path / "m", 17 if make is checkpoints.sharded else 40))
    cache = make_cache(opener(m=source), chunks=2)
    ref = cache.resolve("s3://fake/m")
    source.fail_with(SourceUnavailable("Nothing should be read."))

    with pytest.raises(StorageFull, match=r"at most 33554432 bytes.* found 50331648") as caught:
        cache.open(ref)

    assert caught.value.details == {
        "asked_bytes": 3 * CHUNK_BYTES,
        "capacity_bytes": 2 * CHUNK_BYTES,
    }
    assert list((tmp_path / "ssd").iterdir()) == []


def test_a_failed_load_gives_its_error_and_its_chunks_back(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    source = fake(tmp_path)
    cache = make_cache(opener(m=source))
    ref = cache.resolve("s3://fake/m")
    residency = cache.open(ref)
    residency.wait(WAIT_SECONDS)
    residency.close()
    other = fake(tmp_path, "n", 100)
    cache._open_source = opener(n=other, m=source)
    other_ref = cache.resolve("s3://fake/n")

    def fail_late(name: str, offset: int) -> None:
        if offset >= 3 * CHUNK_BYTES:
            raise SourceUnavailable("The bucket is gone.", "Bring it back.")

    other.before_read = fail_late
    failed = cache.open(other_ref)
    with pytest.raises(SourceUnavailable, match="The bucket is gone") as caught:
        failed.wait(WAIT_SECONDS)
    failed.close()
    finish(cache)

    assert caught.value.remedy == "Bring it back."
    assert cache._context.pool.free_count == 8 - 1  # m gave way, but for its first chunk
    other.before_read = lambda name, offset: None
    _, residency = loaded(cache, "s3://fake/n")
    assert bytes_of(cache, residency) == other.files["model.safetensors"]


def test_a_source_that_changed_since_it_was_pinned_is_refused(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    source = fake(tmp_path)
    ref = make_cache(opener(m=source)).resolve("s3://fake/m")
    source.files["model.safetensors"] = fake(tmp_path, "n", 17, 1).files["model.safetensors"]

    with pytest.raises(CheckpointChanged, match=ref.digest):
        make_cache(opener(m=source)).open(ref)


def test_weights_that_change_under_a_load_are_refused(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    source = fake(tmp_path)
    cache = make_cache(opener(m=source))
    ref = cache.resolve("s3://fake/m")
    source.files["model.safetensors"] = fake(tmp_path, "n", 17, 1).files["model.safetensors"]

    with pytest.raises(CheckpointChanged):
        cache.open(ref).wait(WAIT_SECONDS)


def test_a_cancelled_load_stops_and_gives_its_chunks_back(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    source = fake(tmp_path, mebibytes=100)
    cache = make_cache(opener(m=source))
    ref = cache.resolve("s3://fake/m")
    go = threading.Event()
    hold_weights(source, go)

    residency = cache.open(ref)
    with pytest.raises(DeadlineExceeded):
        residency.wait(0.05)
    residency.cancel()
    go.set()

    with pytest.raises(StokerError, match="cancelled"):
        residency.wait(WAIT_SECONDS)
    finish(cache)
    assert cache._context.pool.free_count == 8
    source.before_read = lambda name, offset: None
    cache.open(ref).wait(WAIT_SECONDS)


def test_a_load_that_somebody_else_wants_survives_a_cancel(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    source = fake(tmp_path)
    cache = make_cache(opener(m=source))
    ref = cache.resolve("s3://fake/m")
    go = threading.Event()
    hold_weights(source, go)

    first = cache.open(ref)
    second = cache.open(ref)
    first.cancel()
    go.set()

    second.wait(WAIT_SECONDS)
    assert bytes_of(cache, second) == source.files["model.safetensors"]


def test_a_full_disk_does_not_stop_a_load_and_leaves_no_partial_chunk(
    tmp_path: Path, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullDisk(Load):
        def write(self, ordinal: int, path: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(fetch, "Load", FullDisk)
    source = fake(tmp_path)
    cache = make_cache(opener(m=source))

    ref, residency = loaded(cache, "s3://fake/m")
    finish(cache)

    assert bytes_of(cache, residency) == source.files["model.safetensors"]
    assert cache.residents() == [Resident(ref.digest, ref.weight_bytes, 0)]


def test_a_local_file_that_rots_is_refused_and_not_deleted(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    import os

    folder = checkpoints.plain(tmp_path / "m", 17)
    weights = folder / "model.safetensors"
    cache = make_cache()
    ref, _ = loaded(cache, folder.as_uri())
    finish(cache)
    status = weights.stat()
    with open(weights, "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))

    with pytest.raises(ChunkCorrupt, match=f"offset {CHUNK_BYTES} of model"):
        make_cache().open(ref).wait(WAIT_SECONDS)
    assert weights.exists()


def test_a_local_folder_that_is_gone_is_missing(tmp_path: Path, make_cache: MakeCache) -> None:
    folder = checkpoints.plain(tmp_path / "m")
    ref, _ = loaded(make_cache(), folder.as_uri())
    folder.rename(tmp_path / "elsewhere")

    with pytest.raises(CheckpointMissing):
        make_cache().open(ref).wait(WAIT_SECONDS)


def test_a_small_ssd_does_not_stop_a_load(tmp_path: Path, make_cache: MakeCache) -> None:
    source = fake(tmp_path, mebibytes=40)
    cache = make_cache(opener(m=source), ssd_bytes=20 << 20)

    ref, residency = loaded(cache, "s3://fake/m")
    finish(cache)

    assert bytes_of(cache, residency) == source.files["model.safetensors"]
    (resident,) = cache.residents()
    assert 0 < resident.ssd_bytes <= 20 << 20
    assert resident.dram_bytes == ref.weight_bytes


@pytest.mark.usefixtures("s3_environment")
def test_an_etag_that_changed_is_refused(
    s3: S3Server, tmp_path: Path, make_cache: MakeCache
) -> None:
    uri = s3_harness.upload(s3, checkpoints.plain(tmp_path / "m"), "tiers/etag")
    cache = make_cache(settings=CheckpointSettings(s3.endpoint_url))
    ref = cache.resolve(uri)
    s3_harness.upload(s3, checkpoints.plain(tmp_path / "n", seed=1), "tiers/etag")

    with pytest.raises(CheckpointChanged):
        cache.open(ref).wait(WAIT_SECONDS)
