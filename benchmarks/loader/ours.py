"""Stoker's ways to tensors; `OURS[name](target)` prepares and returns the call to measure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from hold import chunk_count, read, ready_pool

from stoker.native import CHUNK_BYTES, parse_header
from stoker.native import Mapping as ChunkMapping
from stoker.runtime.checkpoint.residency import Residency

HOLD = Path(__file__).with_name("hold.py")
Tensors = Mapping[str, torch.Tensor]
LOAD_SECONDS_MAXIMUM = 600.0
MARKS: dict[str, float] = {}  # what a loader measured by itself, beside its whole time


def stoker(target: str) -> Callable[[], Tensors]:
    from stoker.runtime.checkpoint.load_file import load_file

    return lambda: load_file(target)


def stoker_copy(target: str) -> Callable[[], Tensors]:
    from stoker.runtime.checkpoint.load_file import load_file

    return lambda: load_file(target, borrow=False)


def stoker_pool(target: str) -> Callable[[], Tensors]:
    """The node's way: into chunks of a pool that is there already, then mapped."""
    file_bytes = Path(target).stat().st_size
    pool = ready_pool(file_bytes)
    chunks = pool.allocate(chunk_count(file_bytes))

    def load() -> Tensors:
        read(pool, chunks, target, file_bytes)
        return _views(_mapped(pool.reader_fd, chunks, file_bytes), file_bytes)

    return load


def stoker_attach(target: str) -> Callable[[], Tensors]:
    """What another process holds in its pool: mapped, not copied."""
    holder = subprocess.Popen(
        [sys.executable, str(HOLD), target], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    held = json.loads(holder.stdout.readline())
    pool_fd = os.open(f"/proc/{holder.pid}/fd/{held['fd']}", os.O_RDONLY | os.O_CLOEXEC)

    def load() -> Tensors:
        assert holder.poll() is None
        mapping = _mapped(pool_fd, held["chunks"], held["byte_count"])
        return _views(mapping, held["byte_count"])

    return load


def stoker_s3(target: str) -> Callable[[], Tensors]:
    """The node's checkpoint cache, empty: resolve, open, wait, map; the SSD copy is written too."""
    from stoker.runtime.checkpoint.settings import CheckpointSettings
    from stoker.runtime.checkpoint.source import prepare_s3
    from stoker.runtime.checkpoint.tiers import CheckpointCache

    capacity_bytes = int(os.environ["BENCHMARK_FILE_BYTES"])
    settings = CheckpointSettings.from_environment(os.environ)
    pool = ready_pool(capacity_bytes)
    cache = CheckpointCache(Path("ssd").absolute(), 2 * capacity_bytes, pool, settings)
    prepare_s3(settings)
    uri = target.rpartition("/")[0]
    held = []

    def load() -> Tensors:
        begun = time.perf_counter()
        residency = cache.open(cache.resolve(uri))
        for name, end in (("first_chunk", CHUNK_BYTES), ("first_layer", _first_layer(residency))):
            end = min(end, residency.byte_count)
            residency.progress.wait(end, LOAD_SECONDS_MAXIMUM)
            MARKS[f"{name}_seconds"], MARKS[f"{name}_bytes"] = time.perf_counter() - begun, end
        residency.wait(LOAD_SECONDS_MAXIMUM)
        held.append(residency)
        mapping = _mapped(pool.reader_fd, residency.chunks, residency.byte_count)
        return _views(mapping, residency.byte_count)

    return load


def _first_layer(residency: Residency) -> int:
    """Where the first layer and all that lies before it end."""
    tensors = json.loads(residency.layout_path.read_bytes())["tensors"]
    return max(offset + size for name, _, _, offset, size in tensors if ".layers.0." in name)


def _mapped(pool_fd: int, chunks: Sequence[int], byte_count: int) -> ChunkMapping:
    mapping = ChunkMapping(byte_count)
    mapping.map(pool_fd, chunks)
    return mapping


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


OURS: dict[str, Callable[[str], Callable[[], Tensors]]] = {
    "stoker": stoker,
    "stoker_copy": stoker_copy,
    "stoker_pool": stoker_pool,
    "stoker_pool_small_pages": stoker_pool,
    "stoker_attach": stoker_attach,
    "stoker_attach_small_pages": stoker_attach,
    "stoker_s3": stoker_s3,
}
