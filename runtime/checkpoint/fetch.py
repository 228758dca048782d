"""One load: a checkpoint's chunks from its source and the SSD into the pool.

peer or source --parts--> pool chunk --digest--> watermark
                                     +---------> SSD, behind the load
SSD or local folder --native reads-> pool chunk --digest--> watermark
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass

import orjson
import structlog

from stoker.native import Cancelled, ChunkError, Load, Pool, Progress, ReadRequest
from stoker.placement.errors import ChunkCorrupt, SourceUnavailable, StokerError
from stoker.runtime.checkpoint.bandwidth import Bandwidth
from stoker.runtime.checkpoint.fetch_order import Part
from stoker.runtime.checkpoint.fetcher import Fetcher
from stoker.runtime.checkpoint.manifest import ChunkEntry
from stoker.runtime.checkpoint.source import Source
from stoker.runtime.checkpoint.source_peer import Peers
from stoker.runtime.checkpoint.ssd import SsdEntry, SsdTier

READ_THREADS = 4
AHEAD_CHUNKS = 8  # read from the disk before it is looked whether somebody waits by now
FAILURE_BYTES_MAXIMUM = 2000
WRITE_DELAY_SECONDS_MAXIMUM = 2.0  # after the load's end, while other loads are in a hurry
ASSUMED_REMOTE_BYTES_PER_SECOND = 100e6  # for the patience with peers, until a source is measured
_log = structlog.get_logger()


@dataclass(frozen=True)
class LoadContext:
    """What every load of one node shares."""

    pool: Pool
    ssd: SsdTier
    fetcher: Fetcher
    writers: ThreadPoolExecutor
    verifiers: ThreadPoolExecutor
    remote_bandwidth: Bandwidth
    peer_bandwidth: Bandwidth
    ssd_bandwidth: Bandwidth


class Loading:
    """`load` brings everything; after `finish` nothing touches the pool chunks any more.

    The first `filled_count` chunks of the pool hold their bytes from before; they are verified.
    One that comes `ahead` of any call takes nobody's room; it is an ordinary one once it is opened.
    """

    def __init__(
        self,
        context: LoadContext,
        entry: SsdEntry,
        source: Source,
        peers: Peers,
        deadline: float | None,
        pool_chunks: Sequence[int],
        filled_count: int,
        *,
        ahead: bool = False,
    ) -> None:
        self.ahead = self._held_back = ahead
        self._context = context
        self._entry = entry
        self._source = source
        self._peers = peers
        self._chunks = entry.manifest.chunks
        self._pool_chunks = list(pool_chunks)
        self._digests = [chunk.digest or entry.digests.get(chunk.ordinal) for chunk in self._chunks]
        self.progress = Progress(len(self._chunks), entry.manifest.byte_count)
        self._load = Load(
            context.pool,
            self._pool_chunks,
            [chunk.bytes for chunk in self._chunks],
            [bytes.fromhex(known) if known else None for known in self._digests],
            self.progress,
        )
        self._filled_count = filled_count
        self._cancelled = threading.Event()
        self._writing = source.local_dir is None
        self._writes: list[Future[None]] = []
        self._ended_at = math.inf
        self._filling = _Filling(self._load)
        self._refused: set[int] = set()  # chunks of which the source has sent a wrong one
        self._fetch_began = 0.0
        self._deadline = math.inf if deadline is None else deadline
        self._fetches = context.fetcher.begin(deadline, self._fetch, ahead=ahead)

    @property
    def complete(self) -> bool:
        return self.progress.state == "complete"

    @property
    def is_local(self) -> bool:
        """Whether all of it lies on this machine's disk, to be read again from there."""
        return self._source.local_dir is not None or len(self._entry.cached) == len(self._chunks)

    def hasten(self, deadline: float | None) -> None:
        """Somebody has opened it, and waits for it until `deadline` (time.monotonic), if any."""
        self.ahead = False
        self._deadline = min(self._deadline, math.inf if deadline is None else deadline)
        self._fetches.hasten(deadline)

    def cancel(self) -> None:
        self._cancelled.set()
        self._load.cancel()
        self._fetches.cancel()

    def abandon(self) -> None:
        """Stop whatever still runs, the write-behind of a complete load included."""
        self._writing = False
        if not self.complete:
            self.cancel()

    def load(self) -> None:
        """Load every chunk; how it ended is in `progress`. Raises nothing."""
        try:
            self._load_chunks()
        except Cancelled:
            self.progress.cancel()
        except StokerError as error:
            _log.warning("checkpoint_load_failed", uri=self._source.uri, cause=error.cause)
            self.progress.fail(encode_failure(error))
        except Exception as error:  # noqa: BLE001 (those who wait must hear of it)
            _log.exception("checkpoint_load_failed_unexpectedly", uri=self._source.uri)
            self.progress.fail(encode_failure(StokerError(f"The load ended with {error!r:.300}.")))
        else:
            self.progress.complete()
        self._ended_at = time.monotonic()

    def finish(self) -> None:
        """Wait for the write-behind, then learn what a local folder's chunks digest to."""
        wait(self._writes)
        if self.complete and self._source.local_dir is not None:
            for chunk in self._chunks:
                if self._digests[chunk.ordinal] is None:
                    found = self._load.digest(chunk.ordinal)
                    assert found is not None, "a complete load has committed every chunk"
                    self._context.ssd.learn(self._entry, chunk.ordinal, found.hex())

    def _load_chunks(self) -> None:
        try:
            missing = self._verify_filled() + list(self._chunks[self._filled_count :])
            local, remote = self._split(missing) if missing else ([], [])
            for chunk in remote:
                self._fetches.add(chunk.ordinal, chunk.bytes)
            if local:
                for chunk in self._read_local(local):
                    self._fetches.add(chunk.ordinal, chunk.bytes)
        except BaseException:
            # Nothing may still write into the chunks when this returns.
            self._fetches.cancel()
            with suppress(BaseException):
                self._fetches.wait()
            raise
        self._fetches.wait()
        if self._held_back:
            return  # How long it took tells nothing of the wire.
        context = self._context
        learnt = context.peer_bandwidth if self._peers.used else context.remote_bandwidth
        learnt.record(self._fetches.bytes, self._fetches.seconds)

    def _verify_filled(self) -> list[ChunkEntry]:
        """Verify what the pool's chunks hold from before; those that must be read again."""
        filled = self._chunks[: self._filled_count]
        sound = self._context.verifiers.map(self._is_filled, filled)
        return [chunk for chunk, holds in zip(filled, sound, strict=True) if not holds]

    def _is_filled(self, chunk: ChunkEntry) -> bool:
        if self._digests[chunk.ordinal] is None:
            return False
        self._load.fill(chunk.ordinal)
        try:
            self._load.commit(chunk.ordinal)
        except ChunkError as error:
            _log.warning("pool_chunk_corrupt", uri=self._source.uri, ordinal=error.ordinal)
            return False
        return True

    def _split(self, missing: list[ChunkEntry]) -> tuple[list[ChunkEntry], list[ChunkEntry]]:
        """The missing chunks that lie on this machine, and those that must be fetched."""
        if self._source.local_dir is not None:
            for weight in self._entry.manifest.weights:
                self._source.read(weight.name, 0, memoryview(bytearray()), weight.version)
            return missing, []
        cached = self._entry.cached
        return (
            [chunk for chunk in missing if chunk.ordinal in cached],
            [chunk for chunk in missing if chunk.ordinal not in cached],
        )

    def _read_local(self, local: list[ChunkEntry]) -> list[ChunkEntry]:
        """Read from disk; the cached chunks that did not verify, to be fetched once more."""
        started = time.monotonic()
        pending = {chunk.ordinal: chunk for chunk in local}
        spoilt = []
        while pending:
            chunks = list(pending.values())[: AHEAD_CHUNKS if self.ahead else None]
            requests = [self._request(chunk) for chunk in chunks]
            try:
                self._load.read(requests, READ_THREADS, deadline=self._deadline)
            except ChunkError as error:
                if self._source.local_dir is not None:
                    raise self._corrupt(error, self._chunks[error.ordinal]) from error
                spoilt.append(self._spoilt(pending.pop(error.ordinal), str(error)))
            except OSError as error:
                chunk = self._cached_at(error.filename)
                if chunk is None:
                    raise SourceUnavailable(
                        f"Expected to read {error.filename}, found: {error.strerror}.",
                        "Check the disk that holds the checkpoint.",
                    ) from error
                spoilt.append(self._spoilt(pending.pop(chunk.ordinal), str(error)))
            pending = {n: c for n, c in pending.items() if not self.progress.is_ready(n)}
        if self._held_back:
            return spoilt
        seconds = time.monotonic() - started
        self.progress.load_seconds = seconds
        read_bytes = sum(chunk.bytes for chunk in local) - sum(chunk.bytes for chunk in spoilt)
        self._context.ssd_bandwidth.record(read_bytes, seconds)
        return spoilt

    def _cached_at(self, path: str | None) -> ChunkEntry | None:
        """The chunk whose copy on the SSD is at `path`; None for what lies elsewhere."""
        if path is None or self._source.local_dir is not None:
            return None
        return next(
            (c for c in self._chunks if path == str(self._entry.chunk_path(c.ordinal))), None
        )

    def _spoilt(self, chunk: ChunkEntry, found: str) -> ChunkEntry:
        """Delete the copy on the SSD, which did not verify or cannot be read."""
        _log.warning("ssd_chunk_spoilt", uri=self._source.uri, ordinal=chunk.ordinal, found=found)
        self._context.ssd.quarantine(self._entry, chunk.ordinal)
        return chunk

    def _request(self, chunk: ChunkEntry) -> ReadRequest:
        folder = self._source.local_dir
        if folder is None:
            return ReadRequest(str(self._entry.chunk_path(chunk.ordinal)), 0, chunk.ordinal)
        path = folder / self._entry.manifest.weights[chunk.file].name
        return ReadRequest(str(path), chunk.file_offset, chunk.ordinal)

    def _fetch(self, part: Part) -> None:
        """Runs in a thread of the fetcher; whoever brings a chunk's last part publishes it."""
        if self._cancelled.is_set():
            raise Cancelled("The load was cancelled.")
        self._fetch_began = self._fetch_began or time.monotonic()
        chunk = self._chunks[part.ordinal]
        self._read_part(chunk, part, self._filling.view(chunk.ordinal)[part.begin : part.end])
        if not self._filling.arrived(chunk, part):
            return
        # Before the commit: who waits for the watermark reads the time next.
        self.progress.fetch_seconds = time.monotonic() - self._fetch_began
        try:
            found = self._load.commit(chunk.ordinal)
        except ChunkError as error:
            self._fetch_again(chunk, error)
            return
        if self._digests[chunk.ordinal] is None:
            self._context.ssd.learn(self._entry, chunk.ordinal, found.hex())
        self._writes.append(self._context.writers.submit(self._write_behind, chunk))

    def _read_part(self, chunk: ChunkEntry, part: Part, into: memoryview) -> None:
        weight = self._entry.manifest.weights[chunk.file]
        offset = chunk.file_offset + part.begin
        # A packed checkpoint's chunks are pinned by their digests, an unpacked one's by version.
        if self._digests[chunk.ordinal] is not None:
            measured = self._context.remote_bandwidth.bytes_per_second
            per_connection = (
                measured or ASSUMED_REMOTE_BYTES_PER_SECOND
            ) / self._context.fetcher.connections
            if self._peers.read(chunk.ordinal, weight.name, offset, into, per_connection):
                return
        self._source.read(weight.name, offset, into, weight.version)

    def _fetch_again(self, chunk: ChunkEntry, error: ChunkError) -> None:
        """Once more from the source; ChunkCorrupt when it was the source that sent this one."""
        _log.warning(
            "fetched_chunk_corrupt",
            uri=self._source.uri,
            ordinal=chunk.ordinal,
            expected=error.expected,
            found=error.found,
        )
        if not self._peers.spoilt(chunk.ordinal):
            if chunk.ordinal in self._refused:
                raise self._corrupt(error, chunk) from error
            self._refused.add(chunk.ordinal)
        self._fetches.add(chunk.ordinal, chunk.bytes)

    def _write_behind(self, chunk: ChunkEntry) -> None:
        while not self._context.fetcher.wait_for_slack(WRITE_DELAY_SECONDS_MAXIMUM / 4):
            if time.monotonic() > self._ended_at + WRITE_DELAY_SECONDS_MAXIMUM:
                break
        if not self._writing or self._cancelled.is_set():
            return
        if not self._context.ssd.reserve_chunk(chunk.bytes, evicting=not self.ahead):
            self._stop_writing("no room that is not in use")
            return
        written = False
        try:
            self._load.write(chunk.ordinal, str(self._entry.chunk_path(chunk.ordinal)))
            written = True
        except Cancelled:
            pass
        except OSError as error:
            self._stop_writing(str(error.strerror))
        finally:
            self._context.ssd.chunk_written(self._entry, chunk.ordinal, chunk.bytes, written)

    def _stop_writing(self, found: str) -> None:
        if self._writing:
            self._writing = False
            _log.warning("ssd_copy_given_up", uri=self._source.uri, found=found)

    def _corrupt(self, error: ChunkError, chunk: ChunkEntry) -> ChunkCorrupt:
        name = self._entry.manifest.weights[chunk.file].name
        return ChunkCorrupt(
            f"Expected digest {error.expected} of {chunk.bytes} bytes at offset "
            f"{chunk.file_offset} of {name} at {self._source.uri}, found {error.found}.",
            "Push or pack the checkpoint again; if it recurs, check the storage behind it.",
            file=name,
            offset=chunk.file_offset,
            expected=error.expected,
            found=error.found,
        )


def encode_failure(error: StokerError) -> str:
    """The error's wire form as JSON, short enough for a Progress page."""
    text = orjson.dumps(error.to_wire(), default=str)
    if len(text) > FAILURE_BYTES_MAXIMUM:
        short = type(error)(error.cause[:600], error.remedy[:200])
        text = orjson.dumps(short.to_wire())
    return text.decode()


def decode_failure(text: str) -> StokerError:
    """The error that `encode_failure` wrote."""
    try:
        wire = orjson.loads(text)
    except orjson.JSONDecodeError:
        wire = {"cause": text or "The load failed without a cause."}
    return StokerError.from_wire(wire)


class _Filling:
    """The chunks of which some parts have come and others have not."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._views: dict[int, memoryview] = {}
        self._arrived: dict[int, int] = {}

    def view(self, ordinal: int) -> memoryview:
        """The chunk's memory, the same for each of its parts."""
        with self._lock:
            if ordinal not in self._views:
                self._views[ordinal] = self._load.fill(ordinal)
                self._arrived[ordinal] = 0
            return self._views[ordinal]

    def arrived(self, chunk: ChunkEntry, part: Part) -> bool:
        """Whether the chunk is whole with this part."""
        with self._lock:
            self._arrived[chunk.ordinal] += part.end - part.begin
            whole = self._arrived[chunk.ordinal] == chunk.bytes
            if whole:
                del self._views[chunk.ordinal], self._arrived[chunk.ordinal]
            return whole
