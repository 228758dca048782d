"""Checkpoint caches over fake sources."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from harness import checkpoints
from harness.fake_source import FakeSource
from stoker.native import Mapping
from stoker.placement.records import CheckpointRef
from stoker.runtime.checkpoint.residency import Residency
from stoker.runtime.checkpoint.source import OpenSource, Source
from stoker.runtime.checkpoint.tiers import CheckpointCache

WAIT_SECONDS = 20.0
GIB = 1 << 30
MakeCache = Callable[..., CheckpointCache]


def opener(**sources: Source) -> OpenSource:
    return lambda uri: sources[uri.rpartition("/")[2]]


def fake(tmp_path: Path, name: str = "m", mebibytes: int = 17, seed: int = 0) -> FakeSource:
    source = FakeSource.of_folder(checkpoints.plain(tmp_path / name, mebibytes, seed))
    source.uri = f"s3://fake/{name}"
    return source


def hold_weights(source: FakeSource, go: threading.Event) -> None:
    def hold(name: str, offset: int) -> None:
        if name.endswith(".safetensors"):
            go.wait(WAIT_SECONDS)

    source.before_read = hold


def finish(cache: CheckpointCache) -> None:
    """Close waits for loads, and so for their write-behind."""
    for thread in list(cache._loaders):
        thread.join(WAIT_SECONDS)


def loaded(cache: CheckpointCache, uri: str) -> tuple[CheckpointRef, Residency]:
    ref = cache.resolve(uri)
    residency = cache.open(ref)
    residency.wait(WAIT_SECONDS)
    return ref, residency


def bytes_of(cache: CheckpointCache, residency: Residency) -> bytes:
    pool = cache._context.pool
    mapping = Mapping(residency.byte_count)
    mapping.map(pool.reader_fd, residency.chunks)
    return bytes(memoryview(mapping))
