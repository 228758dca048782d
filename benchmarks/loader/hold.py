"""Pools as a node has them; and, as a program, another process that holds a file in one.

    python hold.py PATH

tells on one line what it holds, and holds it until its standard input ends.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from stoker.native import CHUNK_BYTES, Load, Pool, Progress, ReadRequest

PREPARE_SECONDS_MAXIMUM = 120.0


def chunk_count(byte_count: int) -> int:
    return -(-byte_count // CHUNK_BYTES)


def ready_pool(byte_count: int) -> Pool:
    """A pool whose memory is there, as that of a node which has loaded before."""
    pool = Pool(chunk_count(byte_count) * CHUNK_BYTES)
    pool.prefault(len(os.sched_getaffinity(0)))
    deadline = time.monotonic() + PREPARE_SECONDS_MAXIMUM
    while pool.prefaulted_bytes < pool.capacity_bytes:  # the pool has nobody to tell
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return pool


def read(pool: Pool, chunks: list[int], path: str, file_bytes: int) -> None:
    offsets = range(0, file_bytes, CHUNK_BYTES)
    sizes = [min(CHUNK_BYTES, file_bytes - offset) for offset in offsets]
    progress = Progress(len(sizes), file_bytes)
    load = Load(pool, chunks, sizes, [None] * len(sizes), progress)
    load.read([ReadRequest(path, offset, number) for number, offset in enumerate(offsets)])


def hold(target: str) -> None:
    file_bytes = Path(target).stat().st_size
    pool = Pool(chunk_count(file_bytes) * CHUNK_BYTES)
    chunks = pool.allocate(chunk_count(file_bytes))
    read(pool, chunks, target, file_bytes)
    held = {"fd": pool.reader_fd, "chunks": chunks, "byte_count": file_bytes}
    print(json.dumps(held), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    hold(sys.argv[1])
