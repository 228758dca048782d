"""Stoker's ways to tensors; `OURS[name](target)` prepares and returns the call to measure.

    python ours.py PATH

holds the file in a pool until its standard input ends, for the measurement of another process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from stoker.native import (
    CHUNK_BYTES,
    Load,
    Pool,
    Progress,
    ReadRequest,
    parse_header,
)
from stoker.native import (
    Mapping as ChunkMapping,
)

Tensors = Mapping[str, torch.Tensor]
PREPARE_SECONDS_MAXIMUM = 120.0
LOAD_SECONDS_MAXIMUM = 600.0


def stoker(target: str) -> Callable[[], Tensors]:
    from stoker.runtime.checkpoint.load_file import load_file

    return lambda: load_file(target)


def stoker_pool(target: str) -> Callable[[], Tensors]:
    """The node's way: into chunks of a pool that is there already, then mapped."""
    file_bytes = Path(target).stat().st_size
    pool = _ready_pool(file_bytes)
    chunks = pool.allocate(_chunk_count(file_bytes))

    def load() -> Tensors:
        _read(pool, chunks, target, file_bytes)
        return _views(ChunkMapping(pool.reader_fd, chunks, file_bytes), file_bytes)

    return load


def stoker_attach(target: str) -> Callable[[], Tensors]:
    """What another process holds in its pool: mapped, not copied."""
    holder = subprocess.Popen(
        [sys.executable, __file__, target], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    held = json.loads(holder.stdout.readline())
    pool_fd = os.open(f"/proc/{holder.pid}/fd/{held['fd']}", os.O_RDONLY | os.O_CLOEXEC)

    def load() -> Tensors:
        assert holder.poll() is None
        mapping = ChunkMapping(pool_fd, held["chunks"], held["byte_count"])
        return _views(mapping, held["byte_count"])

    return load


def stoker_s3(target: str) -> Callable[[], Tensors]:
    """The node's checkpoint cache, empty: resolve, open, wait, map; the SSD copy is written too."""
    from stoker.runtime.checkpoint.settings import CheckpointSettings
    from stoker.runtime.checkpoint.source import prepare_s3
    from stoker.runtime.checkpoint.tiers import CheckpointCache

    capacity_bytes = int(os.environ["BENCHMARK_FILE_BYTES"])
    settings = CheckpointSettings.from_environment(os.environ)
    pool = _ready_pool(capacity_bytes)
    cache = CheckpointCache(Path("ssd").absolute(), 2 * capacity_bytes, pool, settings)
    prepare_s3(settings)
    uri = target.rpartition("/")[0]
    held = []

    def load() -> Tensors:
        residency = cache.open(cache.resolve(uri))
        residency.wait(LOAD_SECONDS_MAXIMUM)
        held.append(residency)
        mapping = ChunkMapping(pool.reader_fd, residency.chunks, residency.byte_count)
        return _views(mapping, residency.byte_count)

    return load


def _chunk_count(byte_count: int) -> int:
    return -(-byte_count // CHUNK_BYTES)


def _ready_pool(byte_count: int) -> Pool:
    """A pool whose memory is there, as that of a node which has loaded before."""
    pool = Pool(_chunk_count(byte_count) * CHUNK_BYTES)
    pool.prefault(len(os.sched_getaffinity(0)))
    deadline = time.monotonic() + PREPARE_SECONDS_MAXIMUM
    while pool.prefaulted_bytes < pool.capacity_bytes:  # the pool has nobody to tell
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return pool


def _read(pool: Pool, chunks: list[int], path: str, file_bytes: int) -> None:
    offsets = range(0, file_bytes, CHUNK_BYTES)
    sizes = [min(CHUNK_BYTES, file_bytes - offset) for offset in offsets]
    progress = Progress(len(sizes), file_bytes)
    load = Load(pool, chunks, sizes, [None] * len(sizes), progress)
    load.read([ReadRequest(path, offset, number) for number, offset in enumerate(offsets)])


def _views(mapping: ChunkMapping, file_bytes: int) -> Tensors:
    start = 8 + int.from_bytes(memoryview(mapping)[:8], "little")
    tensors = {}
    for name, dtype, shape, begin, end in parse_header(memoryview(mapping)[:start], file_bytes):
        assert dtype == "F16"
        octets = torch.frombuffer(
            mapping, dtype=torch.uint8, count=end - begin, offset=start + begin
        )
        tensors[name] = octets.view(torch.float16).view(shape)
    return tensors


def hold(target: str) -> None:
    file_bytes = Path(target).stat().st_size
    pool = Pool(_chunk_count(file_bytes) * CHUNK_BYTES)
    chunks = pool.allocate(_chunk_count(file_bytes))
    _read(pool, chunks, target, file_bytes)
    held = {"fd": pool.reader_fd, "chunks": chunks, "byte_count": file_bytes}
    print(json.dumps(held), flush=True)
    sys.stdin.read()


OURS: dict[str, Callable[[str], Callable[[], Tensors]]] = {
    "stoker": stoker,
    "stoker_pool": stoker_pool,
    "stoker_attach": stoker_attach,
    "stoker_s3": stoker_s3,
}


if __name__ == "__main__":
    hold(sys.argv[1])
