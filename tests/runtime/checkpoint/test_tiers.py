from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson
import pytest

from harness import checkpoints
from harness import s3 as s3_harness
from harness.caches import (
    WAIT_SECONDS,
    MakeCache,
    bytes_of,
    fake,
    finish,
    loaded,
    opener,
)
from harness.fake_source import FakeSource
from stoker.deploy.s3server import S3Server
from stoker.native import CHUNK_BYTES
from stoker.placement.errors import (
    Conflict,
    MemoryShort,
    SourceUnavailable,
    StorageFull,
)
from stoker.runtime.checkpoint.manifest import Manifest
from stoker.runtime.checkpoint.residency import Residency
from stoker.runtime.checkpoint.settings import CheckpointSettings
from stoker.runtime.checkpoint.tiers import CheckpointCache, Resident


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
    assert len(source.reads) == len(set(source.reads))


def test_what_is_refused_before_it_opens_reads_no_weights(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    source = fake(tmp_path)
    cache = make_cache(opener(m=source))
    ref = cache.resolve("s3://fake/m")
    source.reads.clear()

    def refuse(manifest: Manifest, files_dir: Path) -> None:
        assert (files_dir / "config.json").is_file()
        raise MemoryShort(f"There is no room for {manifest.weight_bytes} bytes.")

    for _ in range(2):
        with pytest.raises(MemoryShort):
            cache.open(ref, check=refuse)

    assert source.reads == []
    cache.open(ref).wait(WAIT_SECONDS)
    with pytest.raises(MemoryShort):
        cache.open(ref, check=refuse)


def test_what_is_said_of_one_function_is_not_said_of_another(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    cache = make_cache(opener(m=fake(tmp_path)))
    ref = cache.resolve("s3://fake/m")
    checking, go = threading.Event(), threading.Event()

    def refuse(manifest: Manifest, files_dir: Path) -> None:
        checking.set()
        assert go.wait(WAIT_SECONDS)
        raise MemoryShort("There is no room.")

    with ThreadPoolExecutor(2) as threads:
        refused = threads.submit(cache.open, ref, check=refuse)
        assert checking.wait(WAIT_SECONDS)
        taken = threads.submit(cache.open, ref)
        go.set()
        with pytest.raises(MemoryShort):
            refused.result(WAIT_SECONDS)
        taken.result(WAIT_SECONDS).wait(WAIT_SECONDS)


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


def test_what_nobody_has_open_makes_room(tmp_path: Path, make_cache: MakeCache) -> None:
    cache = make_cache(opener(a=fake(tmp_path, "a"), b=fake(tmp_path, "b", 17, 1)), chunks=3)
    ref, residency = loaded(cache, "s3://fake/a")
    residency.close()

    _, second = loaded(cache, "s3://fake/b")

    assert len(second.chunks) == 2
    # It keeps its first chunk, for which there is room.
    assert _dram_bytes(cache)[ref.digest] == CHUNK_BYTES


def test_what_gave_way_is_loaded_again_from_its_end_alone(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    sources = {name: fake(tmp_path, name, 40, n) for n, name in enumerate("ab")}
    cache = make_cache(opener(**sources), chunks=5)
    ref, residency = loaded(cache, "s3://fake/a")
    expected = bytes_of(cache, residency)
    residency.close()
    finish(cache)
    copy = cache._ssd.entries()[0]
    cache.open(cache.resolve("s3://fake/b")).close()
    finish(cache)
    assert _dram_bytes(cache)[ref.digest] == 2 * CHUNK_BYTES
    # What would be read for a second time cannot be.
    for ordinal in (0, 1):
        copy.chunk_path(ordinal).unlink()
    sources["a"].files.clear()

    again = cache.open(ref)
    again.wait(WAIT_SECONDS)

    assert not again.resident
    assert bytes_of(cache, again) == expected
    assert _dram_bytes(cache)[ref.digest] == ref.weight_bytes


def test_bytes_that_come_while_a_process_starts_are_given_up_before_any_others(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    sources = {name: fake(tmp_path, name, 40, n) for n, name in enumerate("abc")}
    cache = make_cache(opener(**sources), chunks=7)
    cache._dram._hidden_bytes = lambda: CHUNK_BYTES
    refs = [cache.resolve(f"s3://fake/{name}") for name in "abc"]
    for ref in refs:
        residency = cache.open(ref)
        residency.wait(WAIT_SECONDS)
        finish(cache)
        residency.close()

    left = [_dram_bytes(cache)[ref.digest] for ref in refs]
    assert left == [2 * CHUNK_BYTES, 2 * CHUNK_BYTES, refs[2].weight_bytes]


def test_what_is_left_of_one_that_gave_way_is_verified_again(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    sources = {name: fake(tmp_path, name, 40, n) for n, name in enumerate("ab")}
    cache = make_cache(opener(**sources), chunks=5)
    ref, residency = loaded(cache, "s3://fake/a")
    first = residency.chunks[0]
    residency.close()
    finish(cache)
    cache.open(cache.resolve("s3://fake/b")).close()
    finish(cache)
    cache._context.pool.chunk(first)[-8:] = bytes(8)

    again = cache.open(ref)
    again.wait(WAIT_SECONDS)

    assert bytes_of(cache, again) == sources["a"].files["model.safetensors"]


def test_what_is_evicted_leaves_the_memory_or_the_disk_too(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    cache = make_cache(opener(m=fake(tmp_path)))
    ref, residency = loaded(cache, "s3://fake/m")
    finish(cache)
    with pytest.raises(Conflict):
        cache.evict(ref.digest, disk=False)
    residency.close()

    cache.evict(ref.digest, disk=False)
    assert cache.residents() == [Resident(ref.digest, 0, ref.weight_bytes)]
    cache.evict(ref.digest, disk=True)
    assert cache.residents() == []
    cache.evict(ref.digest, disk=True)

    cache.open(ref).wait(WAIT_SECONDS)


def _dram_bytes(cache: CheckpointCache) -> dict[str, int]:
    return {resident.digest: resident.dram_bytes for resident in cache.residents()}


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
