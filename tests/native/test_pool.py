from __future__ import annotations

import gc
import os
import subprocess
import sys
import time

import pytest

from stoker.native import CHUNK_BYTES, Mapping, Pool


def test_a_pool_hands_out_whole_chunks() -> None:
    pool = Pool(3 * CHUNK_BYTES + 1)
    assert (pool.chunk_count, pool.capacity_bytes, pool.free_count) == (3, 3 * CHUNK_BYTES, 3)
    assert isinstance(pool.huge_pages, bool)
    chunks = pool.allocate(2)
    with pytest.raises(MemoryError):
        pool.allocate(2)
    with pytest.raises(ValueError, match="allocated"):
        pool.release([chunks[0], chunks[0]])
    pool.release(chunks)
    with pytest.raises(ValueError, match="allocated"):
        pool.release(chunks)
    assert pool.free_count == 3
    with pytest.raises(ValueError, match="at least one chunk"):
        Pool(5)
    with pytest.raises(ValueError, match="below 3"):
        pool.chunk(3)


def test_a_view_of_a_chunk_outlives_the_pool_object() -> None:
    pool = Pool(CHUNK_BYTES)
    view = pool.chunk(0)
    view[:5] = b"stays"
    del pool
    gc.collect()
    assert bytes(view[:5]) == b"stays"
    assert (len(view), view.readonly) == (CHUNK_BYTES, False)


def test_prefaulting_keeps_what_is_written() -> None:
    pool = Pool(4 * CHUNK_BYTES)
    pool.chunk(3)[-5:] = b"stays"
    pool.prefault(2)
    with pytest.raises(ValueError, match="already"):
        pool.prefault(2)
    deadline = time.monotonic() + 60
    # The pool has nothing to wait on: the count is for people who watch.
    while pool.prefaulted_bytes < pool.capacity_bytes:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert bytes(pool.chunk(3)[-5:]) == b"stays"


def test_what_is_written_to_a_mapping_stays_there() -> None:
    pool = Pool(3 * CHUNK_BYTES)
    pool.chunk(2)[:3] = b"two"
    pool.chunk(0)[:3] = b"nul"
    mapping = Mapping(CHUNK_BYTES + 3)
    view = memoryview(mapping)
    assert bytes(view[:3]) == bytes(3)
    mapping.map(pool.reader_fd, [2, 0])
    mapping.populate()
    assert len(view) == len(mapping) == CHUNK_BYTES + 3
    assert bytes(view[:3]) + bytes(view[CHUNK_BYTES:]) == b"twonul"
    view[:3] = b"own"
    assert bytes(pool.chunk(2)[:3]) == b"two"
    again = Mapping(3)
    again.map(pool.fd, [2])
    assert bytes(memoryview(again)) == b"two"
    del mapping, pool
    gc.collect()
    assert bytes(view[:3]) == b"own"


def test_a_readers_descriptor_cannot_change_or_shrink_the_pool() -> None:
    pool = Pool(CHUNK_BYTES)
    with pytest.raises(OSError, match="descriptor"):
        os.write(pool.reader_fd, b"x")
    with pytest.raises(PermissionError):
        os.ftruncate(pool.fd, 0)


def test_a_mapping_of_chunks_that_are_not_there_is_refused() -> None:
    pool = Pool(CHUNK_BYTES)
    for chunks, byte_count in [([1], 1), ([0], CHUNK_BYTES + 1), ([], 1)]:
        with pytest.raises(ValueError, match="expected"):
            Mapping(byte_count).map(pool.fd, chunks)


def test_a_child_forked_while_the_pool_is_prefaulted_can_end() -> None:
    program = (
        "import os\n"
        "from stoker.native import CHUNK_BYTES, Pool\n"
        "pool = Pool(32 * CHUNK_BYTES)\n"
        "pool.prefault(2)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    del pool\n"
        "    os._exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout == "7\n", done.stderr


def test_ten_processes_hold_one_copy() -> None:
    """The sum of the processes' proportional shares is the pool once, and little more."""
    count = 4
    pool = Pool(count * CHUNK_BYTES)
    for index in range(count):
        pool.chunk(index)[::4096] = bytes([index + 1]) * (CHUNK_BYTES // 4096)
    program = (
        "import pathlib, sys\n"
        "from stoker.native import CHUNK_BYTES, Mapping\n"
        f"mapping = Mapping({count} * CHUNK_BYTES)\n"
        f"mapping.map({pool.reader_fd}, range({count}))\n"
        "seen = set(memoryview(mapping)[::4096].tobytes())\n"
        "print(sorted(seen), flush=True)\n"
        "sys.stdin.readline()\n"
        "inside = False\n"
        "for line in pathlib.Path('/proc/self/smaps').read_text().splitlines():\n"
        "    if '-' in line.split()[0]: inside = 'stoker-pool' in line\n"
        "    elif inside and line.startswith('Pss:'): print(line.split()[1], flush=True)\n"
        "print('end', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[pool.reader_fd],
        )
        for _ in range(10)
    ]
    total_kib = 0
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "[1, 2, 3, 4]\n"
        for worker in workers:
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
            while (line := worker.stdout.readline()) not in ("end\n", ""):
                total_kib += int(line)
    finally:
        for worker in workers:
            worker.communicate("\n", timeout=30)
    pool_kib = count * CHUNK_BYTES // 1024
    # This process has its own mapping and so its own share of each page: 1 of 11.
    assert pool_kib * 0.88 < total_kib < pool_kib * 1.01


def memory_file() -> int:
    return os.memfd_create("handed-over", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def test_a_pool_in_the_memory_file_of_an_earlier_one_finds_its_bytes() -> None:
    held = memory_file()
    first = Pool(3 * CHUNK_BYTES, held)
    first.chunk(2)[:5] = b"stays"
    inode = os.fstat(first.fd).st_ino
    del first
    gc.collect()

    second = Pool(3 * CHUNK_BYTES, held)
    os.close(held)

    assert os.fstat(second.fd).st_ino == inode
    assert bytes(second.chunk(2)[:5]) == b"stays"
    with pytest.raises(PermissionError):
        os.ftruncate(second.fd, 0)


def test_a_memory_file_of_another_capacity_is_emptied_and_not_used() -> None:
    held = memory_file()
    Pool(2 * CHUNK_BYTES, held).chunk(0)[:] = b"x" * CHUNK_BYTES

    other = Pool(3 * CHUNK_BYTES, held)

    assert os.fstat(other.fd).st_ino != os.fstat(held).st_ino
    assert other.capacity_bytes == 3 * CHUNK_BYTES
    assert os.fstat(held).st_blocks == 0
    os.close(held)


def test_only_a_memory_file_is_taken_over() -> None:
    with open(os.devnull) as file, pytest.raises(OSError, match="memory file"):
        Pool(CHUNK_BYTES, file.fileno())
    with pytest.raises(OSError, match="take a memory file over"):
        Pool(CHUNK_BYTES, 1 << 20)


def test_chosen_chunks_are_claimed_all_or_none() -> None:
    pool = Pool(4 * CHUNK_BYTES)
    pool.claim([3, 1])
    for taken in ([0, 1], [0, 0], [0, 4]):
        with pytest.raises(ValueError, match="expected free chunks"):
            pool.claim(taken)
    assert pool.free_count == 2
    assert pool.allocate(2) == [0, 2]
    pool.release([1])
    assert pool.free_count == 1
