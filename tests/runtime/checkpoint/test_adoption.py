"""A new agent takes over what an earlier one left in the memory file of the pool."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from harness import checkpoints
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
from stoker.native import CHUNK_BYTES
from stoker.placement.errors import SourceUnavailable
from stoker.placement.records import CheckpointRef
from stoker.runtime.checkpoint.pool_note import read_note
from stoker.runtime.checkpoint.tiers import CheckpointCache, Resident


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = os.memfd_create("pool", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    yield descriptor
    os.close(descriptor)


def left_behind(
    make_cache: MakeCache, memory: int, uri: str, **sources: FakeSource
) -> tuple[CheckpointRef, list[int], bytes]:
    """Load `uri` in a first agent; what it was, in which chunks of the memory, and the bytes."""
    cache = make_cache(opener(**sources) if sources else None, memory_file=memory)
    ref, residency = loaded(cache, uri)
    finish(cache)
    return ref, residency.chunks, bytes_of(cache, residency)


def restart(make_cache: MakeCache, memory: int, **sources: FakeSource) -> CheckpointCache:
    """The next agent, which has verified what it found."""
    cache = make_cache(opener(**sources) if sources else None, memory_file=memory)
    finish(cache)
    return cache


def damage(memory: int, chunk: int) -> None:
    at = chunk * CHUNK_BYTES + random.Random(0).randrange(1000)
    (octet,) = os.pread(memory, 1, at)
    os.pwrite(memory, bytes([octet ^ 4]), at)


def note_of(tmp_path: Path, ref: CheckpointRef) -> Path:
    return tmp_path / "ssd" / ref.digest / "resident"


def test_a_new_agent_finds_the_checkpoint_in_memory_and_reads_nothing(
    tmp_path: Path, make_cache: MakeCache, memory: int
) -> None:
    source = fake(tmp_path)
    ref, chunks, expected = left_behind(make_cache, memory, "s3://fake/m", m=source)
    for chunk in (tmp_path / "ssd" / ref.digest / "chunks").iterdir():
        chunk.unlink()
    source.fail_with(SourceUnavailable("The bucket is gone."))

    cache = restart(make_cache, memory, m=source)

    assert cache.residents() == [Resident(ref.digest, ref.weight_bytes, 0)]
    residency = cache.open(ref)
    residency.wait(0.0)
    assert residency.resident
    assert residency.chunks == chunks
    assert bytes_of(cache, residency) == expected == source.files["model.safetensors"]
    assert (residency.progress.fetch_seconds, residency.progress.load_seconds) == (0, 0)


def test_a_local_folder_is_adopted_by_the_digests_learnt(
    tmp_path: Path, make_cache: MakeCache, memory: int
) -> None:
    folder = checkpoints.plain(tmp_path / "m", 17)
    ref, _, expected = left_behind(make_cache, memory, folder.as_uri())

    cache = restart(make_cache, memory)

    residency = cache.open(ref)
    assert residency.resident
    assert residency.progress.load_seconds == 0
    assert bytes_of(cache, residency) == expected


def test_a_damaged_chunk_in_memory_is_read_again_from_the_ssd(
    tmp_path: Path, make_cache: MakeCache, memory: int
) -> None:
    source = fake(tmp_path, mebibytes=40)
    ref, chunks, expected = left_behind(make_cache, memory, "s3://fake/m", m=source)
    damage(memory, chunks[1])
    source.fail_with(SourceUnavailable("The bucket is gone."))

    cache = restart(make_cache, memory, m=source)

    residency = cache.open(ref)
    residency.wait(0.0)
    assert bytes_of(cache, residency) == expected
    assert residency.progress.load_seconds > 0


def test_a_damaged_chunk_that_the_ssd_lacks_is_fetched(
    tmp_path: Path, make_cache: MakeCache, memory: int
) -> None:
    source = fake(tmp_path, mebibytes=40)
    ref, chunks, expected = left_behind(make_cache, memory, "s3://fake/m", m=source)
    damage(memory, chunks[1])
    (tmp_path / "ssd" / ref.digest / "chunks" / "1").unlink()
    source.reads.clear()

    cache = restart(make_cache, memory, m=source)

    assert {offset // CHUNK_BYTES for _, offset in source.reads} == {1}
    assert bytes_of(cache, cache.open(ref)) == expected


def test_a_damaged_chunk_that_nothing_can_replace_is_never_served(
    tmp_path: Path, make_cache: MakeCache, memory: int
) -> None:
    source = fake(tmp_path)
    ref, chunks, expected = left_behind(make_cache, memory, "s3://fake/m", m=source)
    damage(memory, chunks[1])
    (tmp_path / "ssd" / ref.digest / "chunks" / "1").unlink()
    source.fail_with(SourceUnavailable("The bucket is gone."))

    cache = restart(make_cache, memory, m=source)

    assert cache._context.pool.free_count == cache._context.pool.chunk_count
    assert not note_of(tmp_path, ref).exists()
    with pytest.raises(SourceUnavailable):
        cache.open(ref).wait(WAIT_SECONDS)
    finish(cache)
    source.before_read = lambda name, offset: None
    residency = cache.open(ref)
    residency.wait(WAIT_SECONDS)
    assert bytes_of(cache, residency) == expected


def test_several_checkpoints_are_adopted_and_new_ones_find_their_room(
    tmp_path: Path, make_cache: MakeCache, memory: int
) -> None:
    sources = {name: fake(tmp_path, name, 17, n) for n, name in enumerate("abc")}
    first = make_cache(opener(**sources), memory_file=memory, chunks=5)
    refs = {name: loaded(first, f"s3://fake/{name}")[0] for name in "ab"}
    finish(first)

    second = make_cache(opener(**sources), memory_file=memory, chunks=5)
    finish(second)

    assert second._context.pool.free_count == 1
    _, third = loaded(second, "s3://fake/c")
    assert bytes_of(second, third) == sources["c"].files["model.safetensors"]
    whole = {r.digest for r in second.residents() if r.dram_bytes == refs["a"].weight_bytes}
    assert len(whole & {ref.digest for ref in refs.values()}) == 1


def test_an_evicted_checkpoint_leaves_no_note(
    tmp_path: Path, make_cache: MakeCache, memory: int
) -> None:
    cache = make_cache(
        opener(a=fake(tmp_path, "a"), b=fake(tmp_path, "b", 17, 1)), chunks=3, memory_file=memory
    )
    ref, residency = loaded(cache, "s3://fake/a")
    finish(cache)
    assert read_note(note_of(tmp_path, ref).parent) is not None
    residency.close()

    loaded(cache, "s3://fake/b")

    assert not note_of(tmp_path, ref).exists()


def test_another_memory_file_holds_nothing_of_ours(
    tmp_path: Path, make_cache: MakeCache, memory: int
) -> None:
    source = fake(tmp_path)
    ref, _, _ = left_behind(make_cache, memory, "s3://fake/m", m=source)

    cache = make_cache(opener(m=source))

    assert not note_of(tmp_path, ref).exists()
    assert cache._context.pool.free_count == 8
    assert not cache.open(ref).resident


@pytest.mark.parametrize(
    "change",
    [
        {"chunks": [0]},
        {"chunks": [0, 0]},
        {"chunks": [0, 99]},
        {"chunks": [0, -1]},
        {"chunks": [0, "one"]},
        {"chunks": None},
        {"uri": 7},
        {"uri": "ftp://elsewhere/m"},
    ],
    ids=str,
)
def test_a_note_that_makes_no_sense_is_not_followed(
    tmp_path: Path, make_cache: MakeCache, memory: int, change: dict[str, object]
) -> None:
    folder = checkpoints.plain(tmp_path / "m", 17)
    ref, _, expected = left_behind(make_cache, memory, folder.as_uri())
    note = note_of(tmp_path, ref)
    note.write_bytes(orjson.dumps(orjson.loads(note.read_bytes()) | change))

    cache = restart(make_cache, memory)

    assert not note.exists()
    assert cache._context.pool.free_count == 8
    residency = cache.open(ref)
    residency.wait(WAIT_SECONDS)
    assert bytes_of(cache, residency) == expected


def test_a_note_that_names_other_chunks_is_found_out(
    tmp_path: Path, make_cache: MakeCache, memory: int
) -> None:
    source = fake(tmp_path)
    ref, chunks, expected = left_behind(make_cache, memory, "s3://fake/m", m=source)
    note = note_of(tmp_path, ref)
    fields = orjson.loads(note.read_bytes())
    note.write_bytes(orjson.dumps(fields | {"chunks": chunks[::-1]}))

    cache = restart(make_cache, memory, m=source)

    residency = cache.open(ref)
    residency.wait(WAIT_SECONDS)
    assert residency.chunks == chunks[::-1]
    assert bytes_of(cache, residency) == expected
