from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from harness import checkpoints
from harness import s3 as s3_harness
from harness.fake_source import FakeSource
from stoker.deploy.s3server import S3Server
from stoker.native import CHUNK_BYTES, Load, Mapping, Pool
from stoker.placement.errors import (
    CheckpointChanged,
    CheckpointMissing,
    ChunkCorrupt,
    DeadlineExceeded,
    SourceUnavailable,
    StokerError,
    StorageFull,
)
from stoker.placement.records import CheckpointRef
from stoker.runtime.checkpoint import fetch, tiers
from stoker.runtime.checkpoint.residency import Residency
from stoker.runtime.checkpoint.settings import CheckpointSettings
from stoker.runtime.checkpoint.source import OpenSource, Source
from stoker.runtime.checkpoint.tiers import CheckpointCache, Resident

WAIT_SECONDS = 20.0
GIB = 1 << 30
MakeCache = Callable[..., CheckpointCache]


@pytest.fixture
def make_cache(tmp_path: Path) -> Iterator[MakeCache]:
    caches: list[CheckpointCache] = []

    def make(
        opener: OpenSource | None = None,
        *,
        chunks: int = 8,
        ssd_bytes: int = GIB,
        settings: CheckpointSettings | None = None,
        on_change: Callable[[], None] = lambda: None,
    ) -> CheckpointCache:
        cache = CheckpointCache(
            tmp_path / "ssd",
            ssd_bytes,
            Pool(chunks * CHUNK_BYTES),
            settings or CheckpointSettings(),
            source_opener=opener,
            on_change=on_change,
        )
        caches.append(cache)
        return cache

    yield make
    for cache in caches:
        cache.close()


def opener(**sources: Source) -> OpenSource:
    return lambda uri: sources[uri.rpartition("/")[2]]


def fake(tmp_path: Path, name: str = "m", mebibytes: int = 17, seed: int = 0) -> FakeSource:
    source = FakeSource.of_folder(checkpoints.plain(tmp_path / name, mebibytes, seed))
    source.uri = f"s3://fake/{name}"
    return source


def hold_weights(source: FakeSource, go: threading.Event) -> None:
    def hold(name: str, offset: int) -> None:
        if name.endswith(".safetensors"):
            go.wait(WAIT_SECONDS)

    source.before_read = hold


def finish(cache: CheckpointCache) -> None:
    """Close waits for loads, and so for their write-behind."""
    for thread in list(cache._loaders):
        thread.join(WAIT_SECONDS)


def loaded(cache: CheckpointCache, uri: str) -> tuple[CheckpointRef, Residency]:
    ref = cache.resolve(uri)
    residency = cache.open(ref)
    residency.wait(WAIT_SECONDS)
    return ref, residency


def bytes_of(cache: CheckpointCache, residency: Residency) -> bytes:
    pool = cache._context.pool
    mapping = Mapping(pool.reader_fd, residency.chunks, residency.byte_count)
    return bytes(memoryview(mapping))


def test_an_opened_checkpoint_is_in_memory_with_its_files_and_layout(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    source = fake(tmp_path)
    cache = make_cache(opener(m=source))

    ref, residency = loaded(cache, "s3://fake/m")

    weights = source.files["model.safetensors"]
    assert bytes_of(cache, residency) == weights
    assert ref.weight_bytes == len(weights)
    assert sorted(p.name for p in residency.files_dir.iterdir()) == [
        "config.json",
        "tokenizer.json",
    ]
    layout = orjson.loads(residency.layout_path.read_bytes())
    assert layout["byte_count"] == residency.byte_count == len(weights)
    name, dtype, shape, offset, size = layout["tensors"][-1]
    assert (name, dtype, shape) == ("layers.0.weight", "U8", [272, 65536])
    assert offset + size == len(weights)
    assert residency.progress.fetch_seconds > 0
    assert cache.bandwidths()[0] > 0


def test_shards_lie_at_chunk_boundaries_of_the_mapping(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    source = FakeSource.of_folder(checkpoints.sharded(tmp_path / "m"))
    cache = make_cache(opener(m=source))

    _, residency = loaded(cache, "s3://fake/m")

    first, second = (source.files[f"model-0000{n}-of-00002.safetensors"] for n in (1, 2))
    mapped = bytes_of(cache, residency)
    assert mapped[: len(first)] == first
    assert mapped[2 * CHUNK_BYTES :] == second
    assert residency.progress.watermark_bytes == residency.byte_count


def test_a_second_open_is_immediate_and_reads_nothing(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    source = fake(tmp_path)
    cache = make_cache(opener(m=source))
    ref, first = loaded(cache, "s3://fake/m")
    reads = len(source.reads)

    second = cache.open(ref)
    second.wait(0.0)

    assert second.chunks == first.chunks
    assert len(source.reads) == reads


def test_opens_of_one_digest_share_one_load(tmp_path: Path, make_cache: MakeCache) -> None:
    source = fake(tmp_path)
    cache = make_cache(opener(m=source))
    ref = cache.resolve("s3://fake/m")
    source.reads.clear()
    opened: list[Residency] = []

    threads = [threading.Thread(target=lambda: opened.append(cache.open(ref))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    for residency in opened:
        residency.wait(WAIT_SECONDS)

    assert len(opened) == 8
    assert sorted(source.reads) == [("model.safetensors", 0), ("model.safetensors", CHUNK_BYTES)]


def test_a_restarted_node_loads_from_its_ssd_alone(tmp_path: Path, make_cache: MakeCache) -> None:
    source = fake(tmp_path)
    cache = make_cache(opener(m=source))
    ref, residency = loaded(cache, "s3://fake/m")
    expected = bytes_of(cache, residency)
    finish(cache)
    source.fail_with(SourceUnavailable("The bucket is gone."))

    again = make_cache(opener(m=source))
    residency = again.open(ref)
    residency.wait(WAIT_SECONDS)

    assert bytes_of(again, residency) == expected
    assert residency.progress.load_seconds > 0
    assert residency.progress.fetch_seconds == 0
    assert again.bandwidths()[0] == 0 < again.bandwidths()[1]
    assert again.residents() == [Resident(ref.digest, ref.weight_bytes, ref.weight_bytes)]


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
    assert source.reads == [("model.safetensors", CHUNK_BYTES)]
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
    assert cache._context.pool.free_count == 8
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


def test_what_nobody_has_open_makes_room(tmp_path: Path, make_cache: MakeCache) -> None:
    cache = make_cache(opener(a=fake(tmp_path, "a"), b=fake(tmp_path, "b", 17, 1)), chunks=3)
    ref, residency = loaded(cache, "s3://fake/a")
    residency.close()

    _, second = loaded(cache, "s3://fake/b")

    assert len(second.chunks) == 2
    dram = {resident.digest: resident.dram_bytes for resident in cache.residents()}
    assert dram[ref.digest] == 0


def test_a_full_memory_says_what_was_asked_free_and_in_use(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    cache = make_cache(opener(a=fake(tmp_path, "a"), b=fake(tmp_path, "b", 17, 1)), chunks=3)
    _, pinned = loaded(cache, "s3://fake/a")
    ref = cache.resolve("s3://fake/b")

    with pytest.raises(StorageFull) as caught:
        cache.open(ref)

    assert caught.value.details == {
        "asked_bytes": 2 * CHUNK_BYTES,
        "free_bytes": CHUNK_BYTES,
        "pinned_bytes": 2 * CHUNK_BYTES,
    }
    pinned.close()
    cache.open(ref).wait(WAIT_SECONDS)


def test_closing_twice_gives_one_pin_back(tmp_path: Path, make_cache: MakeCache) -> None:
    cache = make_cache(opener(a=fake(tmp_path, "a"), b=fake(tmp_path, "b", 17, 1)), chunks=3)
    ref, first = loaded(cache, "s3://fake/a")
    second = cache.open(ref)
    first.close()
    first.close()

    with pytest.raises(StorageFull):
        cache.open(cache.resolve("s3://fake/b"))
    second.close()


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


def test_first_chunks_are_fetched_first(
    tmp_path: Path, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiers, "FETCH_THREADS", 2)
    source = fake(tmp_path, mebibytes=60)
    cache = make_cache(opener(m=source))
    ref = cache.resolve("s3://fake/m")
    source.reads.clear()
    started, go = threading.Semaphore(0), threading.Event()

    def hold(name: str, offset: int) -> None:
        if name == "model.safetensors":
            started.release()
            go.wait(WAIT_SECONDS)

    source.before_read = hold
    residency = cache.open(ref)
    assert started.acquire(timeout=WAIT_SECONDS)
    assert started.acquire(timeout=WAIT_SECONDS)
    begun = {offset for _, offset in source.reads}
    go.set()
    residency.wait(WAIT_SECONDS)

    assert begun == {0, CHUNK_BYTES}
    assert {offset for _, offset in source.reads} == {k * CHUNK_BYTES for k in range(4)}


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


def test_a_local_folder_is_read_in_place_and_its_digests_are_learnt(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    folder = checkpoints.plain(tmp_path / "m", 17)
    cache = make_cache()

    ref, residency = loaded(cache, folder.as_uri())
    finish(cache)

    assert bytes_of(cache, residency) == (folder / "model.safetensors").read_bytes()
    kept = tmp_path / "ssd" / ref.digest
    assert list((kept / "chunks").iterdir()) == []
    assert cache.residents() == [Resident(ref.digest, ref.weight_bytes, ref.weight_bytes)]
    assert len((kept / "digests").read_text().split("\n")) == 3


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
    assert cache.residents() == [Resident(ref.digest, ref.weight_bytes, CHUNK_BYTES)]


def test_changes_are_announced(tmp_path: Path, make_cache: MakeCache) -> None:
    told: list[list[Resident]] = []
    cache = make_cache(opener(m=fake(tmp_path)), on_change=lambda: told.append(cache.residents()))

    ref, _ = loaded(cache, "s3://fake/m")
    finish(cache)

    assert told[-1] == [Resident(ref.digest, ref.weight_bytes, ref.weight_bytes)]


@pytest.mark.usefixtures("s3_environment")
def test_a_packed_model_goes_from_s3_to_memory_and_ssd(
    s3: S3Server, packed_tiny: Path, make_cache: MakeCache
) -> None:
    uri = s3_harness.upload(s3, packed_tiny, "tiers/llama")
    cache = make_cache(settings=CheckpointSettings(s3.endpoint_url))

    ref, residency = loaded(cache, uri)
    finish(cache)

    assert ref.packed
    assert bytes_of(cache, residency) == (packed_tiny / "model.safetensors").read_bytes()
    assert cache.residents() == [Resident(ref.digest, ref.weight_bytes, ref.weight_bytes)]


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
