from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.caches import WAIT_SECONDS, MakeCache, bytes_of, fake, finish, hold_weights, opener
from harness.waiting import eventually
from stoker.native import CHUNK_BYTES, Cancelled
from stoker.runtime.checkpoint.fetch_order import PART_BYTES_AT_FIRST, Part
from stoker.runtime.checkpoint.fetcher import CONNECTIONS, Fetcher

MIB = 1 << 20


@pytest.fixture
def fetcher() -> Iterator[Fetcher]:
    made = Fetcher(connections=2)
    yield made
    made.close()


def test_a_load_that_a_user_waits_for_overtakes_a_prefetch(fetcher: Fetcher) -> None:
    log: list[str] = []
    busy, go = threading.Semaphore(0), threading.Event()

    def prefetch(part: Part) -> None:
        log.append("prefetch")
        busy.release()
        go.wait(WAIT_SECONDS)

    first = fetcher.begin(None, prefetch)
    for ordinal in range(3):
        first.add(ordinal, 2 * MIB)
    for _ in range(2):
        assert busy.acquire(timeout=WAIT_SECONDS)
    second = fetcher.begin(time.monotonic(), lambda part: log.append("urgent"))
    for ordinal in range(4):
        second.add(ordinal, MIB)
    go.set()
    second.wait()
    first.wait()

    assert log == ["prefetch"] * 2 + ["urgent"] * 4 + ["prefetch"]


def test_what_nobody_waits_for_leaves_half_of_the_connections_free(fetcher: Fetcher) -> None:
    running, go = threading.Semaphore(0), threading.Event()

    def prefetch(part: Part) -> None:
        running.release()
        go.wait(WAIT_SECONDS)

    first, second = (fetcher.begin(None, prefetch, ahead=True) for _ in range(2))
    for fetches in (first, second):
        fetches.add(0, MIB)
        fetches.add(1, MIB)
    assert running.acquire(timeout=WAIT_SECONDS)
    assert not running.acquire(timeout=0.1)
    # Somebody comes to wait for one of them: it may have all that is left.
    second.hasten(None)
    assert running.acquire(timeout=WAIT_SECONDS)
    go.set()
    first.wait()
    second.wait()


def test_a_cancelled_load_drops_what_is_queued_and_waits_for_what_runs(fetcher: Fetcher) -> None:
    running, go = threading.Semaphore(0), threading.Event()
    ended = []

    def fetch(part: Part) -> None:
        running.release()
        go.wait(WAIT_SECONDS)
        ended.append(part)

    fetches = fetcher.begin(None, fetch)
    for ordinal in range(50):
        fetches.add(ordinal, MIB)
    for _ in range(2):
        assert running.acquire(timeout=WAIT_SECONDS)
    fetches.cancel()
    threading.Timer(0.1, go.set).start()

    with pytest.raises(Cancelled):
        fetches.wait()
    assert len(ended) == 2


def test_the_first_failure_ends_a_load_and_leaves_the_others_alone(fetcher: Fetcher) -> None:
    def fail(part: Part) -> None:
        raise OSError(f"chunk {part.ordinal}")

    failing, other = fetcher.begin(None, fail), fetcher.begin(None, lambda part: None)
    for ordinal in range(9):
        failing.add(ordinal, MIB)
        other.add(ordinal, MIB)

    with pytest.raises(OSError, match="chunk"):
        failing.wait()
    other.wait()


def test_there_is_slack_while_nothing_is_fetched_or_the_wire_is_slow(fetcher: Fetcher) -> None:
    assert fetcher.wait_for_slack(0.0)
    go = threading.Event()
    quick = fetcher.begin(None, lambda part: None)
    for ordinal in range(20):
        quick.add(ordinal, 16 * MIB)
    quick.wait()

    def hold(part: Part) -> None:
        go.wait(WAIT_SECONDS)

    fetches = fetcher.begin(None, hold)
    fetches.add(0, 16 * MIB)
    eventually(lambda: fetches.running)
    assert not fetcher.wait_for_slack(0.05)
    go.set()
    assert fetcher.wait_for_slack(WAIT_SECONDS)
    fetches.wait()


def test_an_urgent_checkpoint_is_there_before_an_earlier_prefetch(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    slow, urgent = fake(tmp_path, "a", 60), fake(tmp_path, "b", 17, 1)
    for source in (slow, urgent):
        source.before_read = lambda name, offset: time.sleep(0.02)
    cache = make_cache(opener(a=slow, b=urgent))

    prefetch = cache.open(cache.resolve("s3://fake/a"))
    wanted = cache.open(cache.resolve("s3://fake/b"), deadline=time.monotonic())
    wanted.wait(WAIT_SECONDS)
    left_behind = prefetch.progress.state

    assert left_behind == "loading"
    assert bytes_of(cache, wanted) == urgent.files["model.safetensors"]
    prefetch.wait(WAIT_SECONDS)
    finish(cache)


def test_a_prefetch_that_is_opened_with_a_deadline_overtakes_what_was_before_it(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    before, opened = fake(tmp_path, "a", 60), fake(tmp_path, "b", 17, 1)
    for source in (before, opened):
        source.before_read = lambda name, offset: time.sleep(0.02)
    cache = make_cache(opener(a=before, b=opened))
    first = cache.open(cache.resolve("s3://fake/a"))
    ref = cache.resolve("s3://fake/b")
    cache.open(ref)

    wanted = cache.open(ref, deadline=time.monotonic())
    wanted.wait(WAIT_SECONDS)

    assert first.progress.state == "loading"
    first.wait(WAIT_SECONDS)
    finish(cache)


def test_all_connections_share_the_head_chunk(tmp_path: Path, make_cache: MakeCache) -> None:
    source = fake(tmp_path, mebibytes=60)
    go = threading.Event()
    cache = make_cache(opener(m=source))
    ref = cache.resolve("s3://fake/m")
    source.reads.clear()
    hold_weights(source, go)

    residency = cache.open(ref)
    eventually(lambda: len(source.reads) == CONNECTIONS)
    begun = sorted(offset for _, offset in source.reads)
    go.set()
    residency.wait(WAIT_SECONDS)

    assert begun == list(range(0, CHUNK_BYTES, PART_BYTES_AT_FIRST))
