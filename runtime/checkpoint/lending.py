"""A chunk that this node holds, for as long as another node reads it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from stoker.native import Pool
from stoker.runtime.checkpoint.dram import DramTier
from stoker.runtime.checkpoint.manifest import CHUNK_BYTES
from stoker.runtime.checkpoint.ssd import SsdTier


class LentChunk:
    """`byte_count` bytes, from memory or from the SSD; they stay until `close`."""

    def __init__(self, fd: int, begin: int, byte_count: int, give_back: Callable[[], None]) -> None:
        self.byte_count = byte_count
        self._fd = fd
        self._begin = begin
        self._give_back = give_back

    def read(self, offset: int, byte_count: int) -> bytes:
        """Bytes from `offset` on, fewer where the chunk ends; blocks for a chunk on the SSD."""
        wanted = min(byte_count, self.byte_count - offset)
        return os.pread(self._fd, wanted, self._begin + offset)

    def close(self) -> None:
        self._give_back()


def lend(dram: DramTier, ssd: SsdTier, pool: Pool, digest: str, ordinal: int) -> LentChunk | None:
    """The chunk where it is fastest; None when neither tier has it (yet)."""
    entry = dram.pin(digest)
    if entry is not None:
        chunks = entry.ssd.manifest.chunks
        if ordinal < len(chunks) and entry.loading.progress.is_ready(ordinal):
            begin = entry.chunks[ordinal] * CHUNK_BYTES
            return LentChunk(
                pool.reader_fd, begin, chunks[ordinal].bytes, lambda: dram.unpin(entry)
            )
        dram.unpin(entry)
    held = ssd.hold(digest)
    if held is None:
        return None
    try:
        byte_count = held.cached.get(ordinal)
        if byte_count is None:
            return None
        with contextlib.suppress(OSError):
            # What is open stays readable when it is evicted.
            fd = os.open(held.chunk_path(ordinal), os.O_RDONLY | os.O_CLOEXEC)
            return LentChunk(fd, 0, byte_count, lambda: os.close(fd))
        return None
    finally:
        ssd.release(held)
