"""Loads that come before any call take what is free, and give it up to whoever needs it."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from harness import checkpoints
from harness.caches import WAIT_SECONDS, MakeCache, bytes_of, fake, finish, hold_weights, opener
from harness.waiting import eventually
from stoker.native import Load, ReadRequest
from stoker.placement.errors import StokerError, StorageFull
from stoker.placement.records import CheckpointRef
from stoker.runtime.checkpoint import fetch
from stoker.runtime.checkpoint.residency import Residency
from stoker.runtime.checkpoint.tiers import CheckpointCache, Resident


def read_ahead(cache: CheckpointCache, uri: str) -> tuple[CheckpointRef, Residency]:
    """The checkpoint on its way."""
    ref = cache.resolve(uri)
    coming = cache.read_ahead(ref)
    assert coming is not None
    return ref, coming


def test_what_was_read_ahead_is_in_memory_at_its_first_opening(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    source = fake(tmp_path)
    cache = make_cache(opener(m=source))
    ref, coming = read_ahead(cache, "s3://fake/m")
    coming.wait(WAIT_SECONDS)
    finish(cache)
    assert cache.residents() == [Resident(ref.digest, ref.weight_bytes, ref.weight_bytes)]

    opened = cache.open(ref, deadline=time.monotonic())

    assert opened.resident
    assert bytes_of(cache, opened) == source.files["model.safetensors"]
    assert cache.read_ahead(ref) is None


def test_nothing_is_evicted_for_what_is_only_read_ahead(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    sources = {name: fake(tmp_path, name, 17, n) for n, name in enumerate("ab")}
    cache = make_cache(opener(**sources), chunks=3)
    held = cache.resolve("s3://fake/a")
    cache.open(held).close()
    finish(cache)

    with pytest.raises(StorageFull):
        cache.read_ahead(cache.resolve("s3://fake/b"))

    assert [resident.digest for resident in cache.residents()] == [held.digest]
    assert cache.residents()[0].dram_bytes == held.weight_bytes


def test_no_copy_on_the_disk_goes_for_what_is_only_read_ahead(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    sources = {name: fake(tmp_path, name, 17, n) for n, name in enumerate("ab")}
    cache = make_cache(opener(**sources), ssd_bytes=18 << 20)
    kept = cache.resolve("s3://fake/a")
    cache.open(kept).close()
    finish(cache)

    ref, coming = read_ahead(cache, "s3://fake/b")
    coming.wait(WAIT_SECONDS)
    finish(cache)

    found = {resident.digest: resident for resident in cache.residents()}
    assert found[kept.digest].ssd_bytes == kept.weight_bytes
    assert found[ref.digest].dram_bytes == ref.weight_bytes > found[ref.digest].ssd_bytes


def test_a_load_that_needs_its_room_stops_what_is_read_ahead(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    sources = {name: fake(tmp_path, name, 33, n) for n, name in enumerate("ab")}
    go = threading.Event()
    cache = make_cache(opener(**sources), chunks=4)
    ref = cache.resolve("s3://fake/a")
    hold_weights(sources["a"], go)
    coming = cache.read_ahead(ref)
    assert coming is not None
    eventually(lambda: len(sources["a"].reads) > 1)

    with ThreadPoolExecutor(1) as threads:
        wanted = threads.submit(cache.open, cache.resolve("s3://fake/b"), deadline=time.monotonic())
        # Its fetches under way end first: their memory is theirs until then.
        threading.Timer(0.2, go.set).start()
        with pytest.raises(StokerError, match="cancelled"):
            coming.wait(WAIT_SECONDS)
        opened = wanted.result(WAIT_SECONDS)
    opened.wait(WAIT_SECONDS)

    assert bytes_of(cache, opened) == sources["b"].files["model.safetensors"]


def test_what_was_read_ahead_and_never_opened_gives_way_first(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    sources = {name: fake(tmp_path, name, 17, n) for n, name in enumerate("abc")}
    cache = make_cache(opener(**sources), chunks=4)
    used = cache.resolve("s3://fake/a")
    cache.open(used).close()
    finish(cache)
    ahead, coming = read_ahead(cache, "s3://fake/b")
    coming.wait(WAIT_SECONDS)
    finish(cache)

    cache.open(cache.resolve("s3://fake/c")).wait(WAIT_SECONDS)

    found = {resident.digest: resident.dram_bytes for resident in cache.residents()}
    assert found[used.digest] == used.weight_bytes
    assert found[ahead.digest] == 0


def test_who_opens_it_while_it_comes_waits_for_the_same_load(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    source = fake(tmp_path, "a", 40)
    go = threading.Event()
    cache = make_cache(opener(a=source))
    ref = cache.resolve("s3://fake/a")
    source.reads.clear()
    hold_weights(source, go)
    assert cache.read_ahead(ref) is not None
    eventually(lambda: source.reads)
    opened = cache.open(ref, deadline=time.monotonic())
    assert not opened.resident
    go.set()
    opened.wait(WAIT_SECONDS)

    assert bytes_of(cache, opened) == source.files["model.safetensors"]
    reads = [read for read in source.reads if read[0] == "model.safetensors"]
    assert len(reads) == len(set(reads))


def test_an_opening_beside_one_that_found_no_room_ahead_makes_room(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    """The two coalesce until the one that may evict nothing fails."""
    sources = {name: fake(tmp_path, name, 17, n) for n, name in enumerate("ab")}
    cache = make_cache(opener(**sources), chunks=3)
    cache.open(cache.resolve("s3://fake/a")).close()
    finish(cache)
    asking, go = threading.Event(), threading.Event()

    def hold(name: str, offset: int) -> None:
        asking.set()
        assert go.wait(WAIT_SECONDS)

    ref = cache.resolve("s3://fake/b")
    sources["b"].before_read = hold
    with ThreadPoolExecutor(2) as threads:
        ahead = threads.submit(cache.read_ahead, ref)
        assert asking.wait(WAIT_SECONDS)
        opened = threads.submit(cache.open, ref, deadline=time.monotonic())
        time.sleep(0.05)
        go.set()
        with pytest.raises(StorageFull):
            ahead.result(WAIT_SECONDS)
        residency = opened.result(WAIT_SECONDS)
    residency.wait(WAIT_SECONDS)
    assert bytes_of(cache, residency) == sources["b"].files["model.safetensors"]


def test_what_comes_from_the_disk_has_the_deadline_of_who_opens_it_meanwhile(
    tmp_path: Path, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then it comes in small pieces, behind every load that has a deadline."""
    reads: list[tuple[int, float]] = []
    begun, go = threading.Event(), threading.Event()

    class Recorded:
        def __init__(self, *arguments: Any) -> None:
            self._load = Load(*arguments)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._load, name)

        def read(self, requests: list[ReadRequest], threads: int, *, deadline: float) -> None:
            reads.append((len(requests), deadline))
            begun.set()
            assert go.wait(WAIT_SECONDS)
            self._load.read(requests, threads, deadline=deadline)

    monkeypatch.setattr(fetch, "Load", Recorded)
    monkeypatch.setattr(fetch, "AHEAD_CHUNKS", 2)
    cache = make_cache()
    ref, _ = read_ahead(cache, f"file://{checkpoints.plain(tmp_path / 'm', 70)}")
    assert begun.wait(WAIT_SECONDS)
    opened = cache.open(ref, deadline=5.0)
    go.set()
    opened.wait(WAIT_SECONDS)

    assert reads == [(2, math.inf), (3, 5.0)]


def test_what_was_evicted_by_hand_stays_away_until_it_is_opened(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    cache = make_cache(opener(m=fake(tmp_path)))
    ref, coming = read_ahead(cache, "s3://fake/m")
    coming.wait(WAIT_SECONDS)
    finish(cache)
    cache.evict(ref.digest, disk=False)

    assert cache.read_ahead(ref) is None
    assert cache.residents() == [Resident(ref.digest, 0, ref.weight_bytes)]

    cache.open(ref).close()
    finish(cache)
    assert cache.residents() == [Resident(ref.digest, ref.weight_bytes, ref.weight_bytes)]


def test_how_long_it_took_tells_nothing_of_the_speed(tmp_path: Path, make_cache: MakeCache) -> None:
    cache = make_cache(opener(m=fake(tmp_path)))
    _, coming = read_ahead(cache, "s3://fake/m")
    coming.wait(WAIT_SECONDS)
    finish(cache)
    assert cache.bandwidths() == (0.0, 0.0, 0.0)


def test_an_eviction_by_hand_stops_what_is_read_ahead(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    source = fake(tmp_path, "a", 40)
    cache = make_cache(opener(a=source))
    source.before_read = lambda name, offset: time.sleep(0.02)
    ref, coming = read_ahead(cache, "s3://fake/a")

    cache.evict(ref.digest, disk=True)

    assert cache.residents() == []
    assert coming.progress.state in ("cancelled", "complete")
    assert cache.read_ahead(ref) is None
