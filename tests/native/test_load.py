from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.native_load import TAIL_BYTES, TOTAL_BYTES, Bench
from stoker.native import (
    CHUNK_BYTES,
    Cancelled,
    ChunkError,
    Load,
    Pool,
    Progress,
    ReadRequest,
    Region,
    digest,
)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize("direct", [True, False])
def test_a_read_is_verified_published_and_mapped(bench: Bench, direct: bool) -> None:
    bench.load.read(bench.requests, direct=direct)
    assert bench.progress.watermark_bytes == TOTAL_BYTES
    assert [bench.load.digest(0), bench.load.digest(1)] == bench.digests
    assert bench.mapped() == bench.octets
    bench.progress.complete()
    assert bench.progress.state == "complete"


def test_a_cold_read_past_the_page_cache_is_the_same(bench: Bench) -> None:
    with open(bench.path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    bench.load.read(bench.requests)
    assert bench.mapped() == bench.octets


def test_a_corrupt_chunk_is_refused_with_both_digests(bench: Bench) -> None:
    octets = bytearray(bench.octets)
    octets[CHUNK_BYTES + 9] ^= 4
    bench.path.write_bytes(octets)
    with pytest.raises(ChunkError) as caught:
        bench.load.read(bench.requests, threads=1)
    error, expected = caught.value, bench.digests[1]
    assert expected is not None
    assert (error.ordinal, error.path, error.offset) == (1, str(bench.path), CHUNK_BYTES)
    assert error.expected == expected.hex()
    assert error.found == digest(octets[CHUNK_BYTES:]).hex()
    assert error.found in str(error)
    assert not bench.progress.is_ready(1)
    assert bench.progress.watermark_bytes == CHUNK_BYTES


@pytest.mark.parametrize("direct", [True, False])
def test_a_short_file_is_an_error_that_names_it(bench: Bench, direct: bool) -> None:
    os.truncate(bench.path, CHUNK_BYTES + 5_000)
    with pytest.raises(OSError, match=f"ends at {CHUNK_BYTES + 5_000}") as caught:
        bench.load.read(bench.requests, direct=direct)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(bench.path))


def test_a_missing_file_is_told_with_errno_and_path(bench: Bench, tmp_path: Path) -> None:
    missing = tmp_path / "näme"
    with pytest.raises(FileNotFoundError) as caught:
        bench.load.read([ReadRequest(missing, 0, 0)])
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(missing))
    with pytest.raises(FileNotFoundError):
        into_region(bench, Region(TOTAL_BYTES)).read([ReadRequest(missing, 0, 0)])


def test_a_filled_chunk_is_published_by_its_commit(bench: Bench) -> None:
    view = bench.load.fill(1)
    assert len(view) == TAIL_BYTES
    with pytest.raises(ChunkError):
        bench.load.commit(1)
    bench.load.fill(1)[:] = bench.octets[CHUNK_BYTES:]
    assert bench.load.commit(1) == bench.digests[1]
    assert bench.progress.is_ready(1)
    with pytest.raises(ValueError, match="committed"):
        bench.load.fill(1)
    with pytest.raises(ValueError, match="committed"):
        bench.load.read([bench.requests[1]])


def test_an_unknown_digest_is_computed_at_commit() -> None:
    pool, progress = Pool(CHUNK_BYTES), Progress(1, 10)
    load = Load(pool, pool.allocate(1), [10], [None], progress)
    assert load.digest(0) is None
    load.fill(0)[:] = b"0123456789"
    assert load.commit(0) == load.digest(0) == digest(b"0123456789")


def test_an_abandoned_chunk_may_be_read(bench: Bench) -> None:
    bench.load.fill(0)
    with pytest.raises(ValueError, match="filled"):
        bench.load.read(bench.requests)
    bench.load.abandon(0)
    bench.load.read([bench.requests[0]])
    assert bench.progress.is_ready(0)


def test_a_committed_chunk_is_written_whole(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "copies"
    folder.mkdir()
    with pytest.raises(ValueError, match="committed"):
        bench.load.write(1, folder / "chunk")
    bench.load.read(bench.requests)
    bench.load.write(1, folder / "chunk")
    assert (folder / "chunk").read_bytes() == bench.octets[CHUNK_BYTES:]
    with pytest.raises(OSError, match="cannot") as caught:
        bench.load.write(0, folder / "chunk" / "below")
    assert caught.value.errno == errno.ENOTDIR
    assert [path.name for path in folder.iterdir()] == ["chunk"]


def test_a_load_refuses_what_does_not_fit(bench: Bench) -> None:
    pool, progress = bench.pool, bench.progress
    wrong: list[tuple[list[int], list[int], list[bytes | None]]] = [
        ([0], [1], [None]),
        ([0, 9], [1, 1], [None, None]),
        ([0, 1], [1, CHUNK_BYTES + 1], [None, None]),
        ([0, 1], [1, 0], [None, None]),
        ([0, 1], [1, 1], [None, b"short"]),
    ]
    for chunks, sizes, digests in wrong:
        with pytest.raises(ValueError, match="expected"):
            Load(pool, chunks, sizes, digests, progress)
    with pytest.raises(ValueError, match="below 2"):
        bench.load.fill(2)


def test_a_cancelled_load_stops_and_stays_so(tmp_path: Path) -> None:
    count = 24
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, count * CHUNK_BYTES)
    pool, progress = Pool(count * CHUNK_BYTES), Progress(count, count * CHUNK_BYTES)
    sizes: list[int] = [CHUNK_BYTES] * count
    load = Load(pool, pool.allocate(count), sizes, [None] * count, progress)
    outcome: list[BaseException] = []

    def read() -> None:
        try:
            load.read([ReadRequest(path, i * CHUNK_BYTES, i) for i in range(count)], threads=1)
        except Cancelled as error:
            outcome.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    progress.wait(CHUNK_BYTES, 60)
    load.cancel()
    reader.join(60)
    assert len(outcome) == 1
    assert progress.watermark_bytes < count * CHUNK_BYTES
    with pytest.raises(Cancelled):
        load.fill(count - 1)


def others_run_during(blocking: Callable[[], object]) -> bool:
    """Whether another Python thread gets anywhere while `blocking` runs in this one."""
    began, ended = threading.Event(), threading.Event()
    steps: list[float] = []

    def step() -> None:
        began.set()
        while not ended.is_set():
            steps.append(time.monotonic())
            time.sleep(0.001)

    other = threading.Thread(target=step)
    # With so long an interval nobody is asked to let go: only the call itself can.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)
    try:
        other.start()
        began.wait(10)
        # On a busy machine the other thread may miss a short call, so it gets several.
        for _ in range(10):
            begin = time.monotonic()
            blocking()
            end = time.monotonic()
            margin = (end - begin) / 10
            if any(begin + margin < at < end - margin for at in steps):
                return True
        return False
    finally:
        sys.setswitchinterval(interval)
        ended.set()
        other.join(10)


def test_other_threads_run_during_every_blocking_call(bench: Bench, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.touch()
    os.truncate(big, 16 * CHUNK_BYTES)
    region = Region(16 * CHUNK_BYTES)
    assert others_run_during(lambda: [digest(region) for _ in range(4)])

    def wait() -> None:
        with pytest.raises(TimeoutError):
            bench.progress.wait(1, 0.1)

    assert others_run_during(wait)
    count = 8
    pool, chunks = Pool(count * CHUNK_BYTES), list(range(count))
    requests = [ReadRequest(big, 0, ordinal) for ordinal in chunks]

    def read() -> Load:
        progress = Progress(count, count * CHUNK_BYTES)
        load = Load(pool, chunks, [CHUNK_BYTES] * count, [None] * count, progress)
        load.read(requests, threads=1)
        return load

    assert others_run_during(read)
    load = read()
    assert others_run_during(lambda: load.write(0, tmp_path / "copy"))


def into_region(bench: Bench, region: Region, borrow: bool = False) -> Load:
    sizes = [CHUNK_BYTES, TAIL_BYTES]
    return Load.into_region(region, sizes, bench.digests, bench.progress, borrow)


@pytest.mark.parametrize("borrow", [True, False])
@pytest.mark.parametrize("huge_pages", [True, False])
def test_a_region_is_filled_and_verified(bench: Bench, borrow: bool, huge_pages: bool) -> None:
    region = Region(TOTAL_BYTES, huge_pages)
    load = into_region(bench, region, borrow)
    load.read(bench.requests)
    assert bytes(memoryview(region)) == bench.octets
    assert load.ways["borrowed" if borrow else "cached"] == 2
    assert bench.progress.watermark_bytes == TOTAL_BYTES


def test_a_region_that_is_too_small_is_refused(bench: Bench) -> None:
    with pytest.raises(ValueError, match="at least"):
        into_region(bench, Region(TOTAL_BYTES - 1))
    with pytest.raises(OSError, match="address space") as refused:
        Region(2**64 - 1)
    assert refused.value.errno == errno.ENOMEM


def test_a_region_is_written_from_its_chunks(bench: Bench, tmp_path: Path) -> None:
    load = into_region(bench, Region(TOTAL_BYTES), borrow=True)
    load.read(bench.requests)
    load.write(1, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == bench.octets[CHUNK_BYTES:]


def test_what_a_region_discards_is_given_back_and_the_rest_stays() -> None:
    region = Region(3 * 4096 + 100)
    view = memoryview(region)
    view[:] = b"x" * len(view)

    region.discard(100, 2 * 4096)

    assert bytes(view[:4096]) == b"x" * 4096
    assert bytes(view[4096:8192]) == bytes(4096)
    assert bytes(view[8192:]) == b"x" * (len(view) - 8192)
    region.discard(10, 20)
    region.discard(len(region), 0)
    with pytest.raises(ValueError, match="within"):
        region.discard(1, len(region))
