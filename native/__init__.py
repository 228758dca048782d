"""The native loader: pool, chunks, digests, progress and the safetensors header, in C++."""

from __future__ import annotations

from stoker.native._core import (
    CHUNK_BYTES,
    Cancelled,
    ChunkError,
    HeaderError,
    Load,
    Mapping,
    Pool,
    Progress,
    ReadRequest,
    Region,
    digest,
    has_io_uring,
    header_bytes,
    parse_header,
    parse_metadata,
)

__all__ = [
    "CHUNK_BYTES",
    "Cancelled",
    "ChunkError",
    "HeaderError",
    "Load",
    "Mapping",
    "Pool",
    "Progress",
    "ReadRequest",
    "Region",
    "digest",
    "has_io_uring",
    "header_bytes",
    "parse_header",
    "parse_metadata",
]
