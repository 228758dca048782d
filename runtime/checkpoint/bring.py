"""The one way that checkpoint bytes come into this process's own memory.

    calling thread     on_progress, on_ready   <- watermark
    reading thread     native reads of local files, or threads that fetch ranges
                       -> region, chunk by chunk, each verified before the watermark counts it

`on_ready` may hold the reading thread back, so that what it uses up and discards stays bounded.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Protocol

from stoker.native import (
    CHUNK_BYTES,
    ChunkError,
    Device,
    DeviceMemory,
    Load,
    PinnedRange,
    Progress,
    ReadRequest,
    Region,
)
from stoker.placement.errors import (
    CheckpointChanged,
    ChunkCorrupt,
)
from stoker.runtime.checkpoint.load_errors import told_about, told_about_device
from stoker.runtime.checkpoint.manifest import ChunkEntry, Manifest, WeightFile
from stoker.runtime.checkpoint.source import Source
from stoker.runtime.checkpoint.source_file import version_of
from stoker.runtime.checkpoint.stopping import Stop, current_stop

READ_THREADS = 4
FETCH_THREADS = 8
WINDOW_CHUNKS = 8  # on the way to a device
CUDA_DRIVER = "libcuda.so.1"
BATCH_CHUNKS = 4  # read without asking again whether the user of the bytes keeps up
REPORT_SECONDS = 0.05
WAIT_SECONDS = 60.0

OnProgress = Callable[[int, int], None]
OnReady = Callable[[Region, int], int]
"""Gets how much of the region is there from its start on; answers how far reading may go."""


class Origin(Protocol):
    """Where the files are that chunks name by number."""

    def read(self, load: Load, chunks: Sequence[ChunkEntry]) -> None:
        """Bring these chunks; nothing touches the load any more when it returns or raises."""
        ...

    def check(self) -> None:
        """Raise CheckpointChanged if a file is not any more what it was when it was pinned."""
        ...

    def name(self, file: int) -> str: ...


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """Files of this machine; a version is that of FileSource, None for any."""

    paths: tuple[str, ...]
    versions: tuple[str | None, ...]

    def read(self, load: Load, chunks: Sequence[ChunkEntry]) -> None:
        with told_about(self.paths[0]):
            load.read(
                [ReadRequest(self.paths[c.file], c.file_offset, c.ordinal) for c in chunks],
                READ_THREADS,
            )

    def check(self) -> None:
        for path, version in zip(self.paths, self.versions, strict=True):
            with told_about(path):
                found = version_of(os.stat(path))  # noqa: PTH116 (the path may be bytes)
            if version is not None and found != version:
                raise CheckpointChanged(
                    f"Expected {path} to stay as it was while it was read; it changed.",
                    "Write a new file under another name and rename it before it is loaded.",
                )

    def name(self, file: int) -> str:
        return self.paths[file]


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """Files of a source, read by ranges; it refuses other versions itself."""

    source: Source
    weights: tuple[WeightFile, ...]

    def read(self, load: Load, chunks: Sequence[ChunkEntry]) -> None:
        with ThreadPoolExecutor(FETCH_THREADS, "stoker-fetch") as threads:
            fetches = [threads.submit(self._fetch, load, chunk) for chunk in chunks]
            done, _ = wait(fetches, return_when=FIRST_EXCEPTION)
            failed = next((fetch for fetch in done if fetch.exception() is not None), None)
            if failed is not None:
                load.cancel()
                threads.shutdown(wait=True, cancel_futures=True)
                failed.result()

    def _fetch(self, load: Load, chunk: ChunkEntry) -> None:
        try:
            self._fetch_once(load, chunk)
        except ChunkError:
            self._fetch_once(load, chunk)

    def _fetch_once(self, load: Load, chunk: ChunkEntry) -> None:
        weight = self.weights[chunk.file]
        memory = load.fill(chunk.ordinal)
        self.source.read(weight.name, chunk.file_offset, memory, weight.version)
        load.commit(chunk.ordinal)

    def check(self) -> None:
        pass

    def name(self, file: int) -> str:
        return f"{self.source.uri}/{self.weights[file].name}"


def origin_of(source: Source, manifest: Manifest) -> Origin:
    folder = source.local_dir
    if folder is None:
        return SourceFiles(source, manifest.weights)
    return LocalFiles(
        tuple(str(folder / weight.name) for weight in manifest.weights),
        tuple(weight.version for weight in manifest.weights),
    )


class Report:
    """Tells a caller how far several loads together are, at most every REPORT_SECONDS."""

    def __init__(self, on_progress: OnProgress | None, total_bytes: int) -> None:
        self._on_progress = on_progress
        self._total_bytes = total_bytes
        self._before_bytes = 0
        self._next = 0.0

    def ready(self, byte_count: int) -> None:
        now = time.monotonic()
        if self._on_progress is not None and now >= self._next:
            done = self._before_bytes + byte_count
            if done < self._total_bytes:  # the end is told once, when all is verified
                self._on_progress(done, self._total_bytes)
                self._next = now + REPORT_SECONDS

    def finished(self, byte_count: int) -> None:
        self._before_bytes += byte_count
        if self._on_progress is not None and self._before_bytes == self._total_bytes:
            self._on_progress(self._total_bytes, self._total_bytes)


def bring(
    origin: Origin,
    chunks: Sequence[ChunkEntry],
    *,
    borrow: bool = True,
    on_ready: OnReady | None = None,
    report: Report | None = None,
) -> Region:
    """Chunk n of `chunks`, which must have ordinal n, at n * CHUNK_BYTES of a new region.

    All but the last of a file are whole. Raises CheckpointError, SourceUnavailable, StorageFull,
    whatever `on_ready` and the report raise, and Cancelled when the current Stop says so. When it
    returns or raises, its threads have ended.
    """
    extent = extent_of(chunks)
    with told_about(origin.name(0)):
        region = Region(extent)
    progress = Progress(len(chunks), extent)
    load = Load.into_region(region, _sizes(chunks), _digests(chunks), progress, borrow)
    ready = None if on_ready is None else partial(on_ready, region)
    _run(origin, chunks, load, progress, ready, report)
    return region


def bring_to_device(
    origin: Origin,
    chunks: Sequence[ChunkEntry],
    ordinal: int,
    *,
    report: Report | None = None,
    driver: str = CUDA_DRIVER,
) -> DeviceMemory:
    """As `bring`, in memory of CUDA device `ordinal`, by way of WINDOW_CHUNKS of pinned memory.

    Raises DeviceFailed as well.
    """
    extent = extent_of(chunks)
    with told_about_device(ordinal):
        device = Device(ordinal, driver)
        memory = DeviceMemory(device, extent)
        window = PinnedRange(device, Region(min(WINDOW_CHUNKS, len(chunks)) * CHUNK_BYTES))
        progress = Progress(len(chunks), extent)
        load = Load.into_device(memory, window, _sizes(chunks), _digests(chunks), progress)
        _run(origin, chunks, load, progress, None, report)
    return memory


def extent_of(chunks: Sequence[ChunkEntry]) -> int:
    return (len(chunks) - 1) * CHUNK_BYTES + chunks[-1].bytes


def _sizes(chunks: Sequence[ChunkEntry]) -> list[int]:
    return [chunk.bytes for chunk in chunks]


def _digests(chunks: Sequence[ChunkEntry]) -> list[bytes | None]:
    return [bytes.fromhex(chunk.digest) if chunk.digest else None for chunk in chunks]


def _run(
    origin: Origin,
    chunks: Sequence[ChunkEntry],
    load: Load,
    progress: Progress,
    on_ready: Callable[[int], int] | None,
    report: Report | None,
) -> None:
    extent = progress.total_bytes
    gate = _Gate(0 if on_ready is not None else extent)

    def read() -> None:
        try:
            for batch in _batches(chunks, bounded=on_ready is not None):
                gate.wait(batch[0].ordinal * CHUNK_BYTES)
                origin.read(load, batch)
            load.finish()
        except BaseException as error:
            progress.fail(f"{error!r:.200}")
            raise
        progress.complete()

    stop = current_stop.get(None) or Stop()
    report = report or Report(None, sum(_sizes(chunks)))
    with (
        ThreadPoolExecutor(1, "stoker-bring") as thread,
        stop.stops(load.cancel),
        stop.stops(gate.open),
    ):
        if on_ready is not None:
            gate.allow(on_ready(0))
        reading = thread.submit(read)
        try:
            _follow(progress, _sizes(chunks), on_ready, report, gate)
        except BaseException:
            load.cancel()
            gate.open()
            raise
        with _corrupt(origin, chunks):
            reading.result()
    if on_ready is not None:
        on_ready(extent)  # reading may have ended before its last chunks were followed
    origin.check()
    report.finished(sum(_sizes(chunks)))


def _batches(chunks: Sequence[ChunkEntry], bounded: bool) -> Iterator[Sequence[ChunkEntry]]:
    step = BATCH_CHUNKS if bounded else len(chunks)
    for start in range(0, len(chunks), step):
        yield chunks[start : start + step]


def _follow(
    progress: Progress,
    sizes: Sequence[int],
    on_ready: Callable[[int], int] | None,
    report: Report,
    gate: _Gate,
) -> None:
    """Until all is there or reading has ended; each wake is for one chunk more at least."""
    done_bytes = [0, *accumulate(sizes)]
    ready = 0
    while ready < progress.total_bytes and progress.state == "loading":
        try:
            ready = progress.wait(ready + 1, WAIT_SECONDS)
        except TimeoutError:
            continue  # the reads themselves have deadlines, and end the load
        count = len(sizes) if ready == progress.total_bytes else ready // CHUNK_BYTES
        report.ready(done_bytes[count])
        if on_ready is not None and count:
            gate.allow(on_ready(ready))


class _Gate:
    """How far into the region reading may begin."""

    def __init__(self, extent: int) -> None:
        self._extent = extent
        self._opened = False
        self._changed = threading.Condition()

    def allow(self, extent: int) -> None:
        with self._changed:
            self._extent = max(self._extent, extent)
            self._changed.notify_all()

    def open(self) -> None:
        with self._changed:
            self._opened = True
            self._changed.notify_all()

    def wait(self, offset: int) -> None:
        with self._changed:
            # Whoever uses the bytes either goes on or fails, and opens the gate then.
            self._changed.wait_for(lambda: self._opened or offset <= self._extent)


@contextmanager
def _corrupt(origin: Origin, chunks: Sequence[ChunkEntry]) -> Iterator[None]:
    try:
        yield
    except ChunkError as error:
        chunk = chunks[error.ordinal]
        name = origin.name(chunk.file)
        raise ChunkCorrupt(
            f"Expected digest {error.expected} of {chunk.bytes} bytes at offset "
            f"{chunk.file_offset} of {name}, found {error.found}.",
            "Push or pack the checkpoint again; if it recurs, check the storage behind it.",
            file=name.rpartition("/")[2],
            offset=chunk.file_offset,
            expected=error.expected,
            found=error.found,
        ) from error
