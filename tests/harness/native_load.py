"""Two chunks in one file, the second one short, and what a load of them needs."""

from __future__ import annotations

import random
from pathlib import Path

from stoker.native import CHUNK_BYTES, Load, Mapping, Pool, Progress, ReadRequest, digest

TAIL_BYTES = 70_001
TOTAL_BYTES = CHUNK_BYTES + TAIL_BYTES


class Bench:
    """Two chunks in one file, and a fresh load of them."""

    def __init__(self, folder: Path) -> None:
        self.octets = random.Random(7).randbytes(TOTAL_BYTES)
        self.path = folder / "weights"
        self.path.write_bytes(self.octets)
        self.digests: list[bytes | None] = [
            digest(self.octets[:CHUNK_BYTES]),
            digest(self.octets[CHUNK_BYTES:]),
        ]
        self.pool = Pool(3 * CHUNK_BYTES)
        self.chunks = self.pool.allocate(2)[::-1]
        self.progress = Progress(2, TOTAL_BYTES)
        sizes = [CHUNK_BYTES, TAIL_BYTES]
        self.load = Load(self.pool, self.chunks, sizes, self.digests, self.progress)
        self.requests = [
            ReadRequest(self.path, 0, 0),
            ReadRequest(self.path, CHUNK_BYTES, 1),
        ]

    def mapped(self) -> bytes:
        mapping = Mapping(TOTAL_BYTES)
        mapping.map(self.pool.fd, self.chunks)
        return bytes(memoryview(mapping))
