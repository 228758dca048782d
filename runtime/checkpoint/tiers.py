"""The checkpoints of one node: remote or local source, SSD, DRAM."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path

import structlog

from stoker.native import Pool
from stoker.placement.errors import (
    CheckpointChanged,
    Conflict,
    DeadlineExceeded,
    MemoryShort,
    StokerError,
    StorageFull,
)
from stoker.placement.records import CheckpointRef
from stoker.runtime.checkpoint.bandwidth import Bandwidths
from stoker.runtime.checkpoint.dram import DramEntry, DramTier
from stoker.runtime.checkpoint.fetch import READ_THREADS, LoadContext, Loading
from stoker.runtime.checkpoint.fetcher import Fetcher
from stoker.runtime.checkpoint.lending import LentChunk, lend
from stoker.runtime.checkpoint.manifest import FileEntry, Manifest, chunk_count
from stoker.runtime.checkpoint.pool_note import (
    PoolNote,
    memory_identity,
    read_note,
    remove_note,
    write_note,
)
from stoker.runtime.checkpoint.residency import Residency
from stoker.runtime.checkpoint.resolve import check_kind, read_small_file, resolve
from stoker.runtime.checkpoint.settings import CheckpointSettings
from stoker.runtime.checkpoint.source import OpenSource, Source, open_source
from stoker.runtime.checkpoint.source_peer import PeerAccess, Peers, PeerSource
from stoker.runtime.checkpoint.source_range import RangeReader
from stoker.runtime.checkpoint.ssd import SsdEntry, SsdTier

SMALL_FILE_THREADS = 4
OPEN_SECONDS_MAXIMUM = 300.0
RESOLVED_MAXIMUM = 64
UNWANTED_MAXIMUM = 1024
STOP_SECONDS_MAXIMUM = 30.0
_log = structlog.get_logger()

Check = Callable[[Manifest, Path], None]


def _unchecked(_manifest: Manifest, _files_dir: Path) -> None:
    """Takes every checkpoint."""


@dataclass(frozen=True, slots=True)
class Resident:
    """How many weight bytes of one checkpoint are in memory, and how many on this disk."""

    digest: str
    dram_bytes: int
    ssd_bytes: int


class CheckpointCache:
    """Loads checkpoints into `pool` and keeps what is likely to be needed again.

    Every method may be called from any thread; `resolve` and `open` block. `on_change` is called
    from a loader's thread, no lock held, when `residents` may have changed.
    """

    def __init__(
        self,
        ssd_dir: Path,
        ssd_bytes: int,
        pool: Pool,
        settings: CheckpointSettings,
        *,
        on_change: Callable[[], None] = lambda: None,
        source_opener: OpenSource | None = None,
        cluster_token: str = "",
    ) -> None:
        self._open_source = source_opener or functools.partial(open_source, settings=settings)
        self._on_change = on_change
        self._bandwidths = known = Bandwidths()
        self._ssd = SsdTier(ssd_dir, ssd_bytes, known.fetch_seconds)
        self._dram = DramTier(pool, known.load_seconds, known.hidden_bytes, self._gone)
        self._context = LoadContext(
            pool=pool,
            ssd=self._ssd,
            fetcher=Fetcher(),
            writers=ThreadPoolExecutor(1, "write-behind"),
            remote_bandwidth=known.remote,
            peer_bandwidth=known.peer,
            ssd_bandwidth=known.ssd,
            # Apart from the fetchers, whose loads somebody waits for.
            verifiers=ThreadPoolExecutor(READ_THREADS, "verify"),
        )
        self._peer_access = PeerAccess(cluster_token, RangeReader(proxied=False))
        # Apart from the fetcher, where they would queue behind the weights of other loads.
        self._small_files = ThreadPoolExecutor(SMALL_FILE_THREADS, "small-files")
        self._lock = threading.Lock()
        self._openings: dict[str, Future[None]] = {}
        self._resolved: OrderedDict[str, Manifest] = OrderedDict()
        # What was evicted by hand and not opened since; the oldest is forgotten first.
        self._unwanted: OrderedDict[str, None] = OrderedDict()
        self._loaders: set[threading.Thread] = set()
        self._memory = memory_identity(pool)
        self._adopt()

    def resolve(self, uri: str, adapter: bool = False) -> CheckpointRef:
        """Pin the model that is now at `uri`, or the adapter.

        Raises BadSpec, CheckpointMissing, CheckpointForbidden, PickleRefused, HeaderInvalid,
        CheckpointError or SourceUnavailable.
        """
        manifest = resolve(self._open_source(uri))
        check_kind(manifest, uri, adapter=adapter)
        with self._lock:
            self._resolved[manifest.digest] = manifest
            while len(self._resolved) > RESOLVED_MAXIMUM:
                self._resolved.popitem(last=False)
        return CheckpointRef(uri, manifest.digest, manifest.weight_bytes, manifest.packed)

    def open(
        self,
        ref: CheckpointRef,
        *,
        deadline: float | None = None,
        peers: Sequence[str] = (),
        check: Check = _unchecked,
    ) -> Residency:
        """Hold the checkpoint; the load runs on behind the return. Opens of one digest coalesce.

        Of several loads the one with the earliest `deadline` (time.monotonic) goes first; one
        without gets what is left. `peers` are `host:port` of agents that may hold its chunks.
        `check` is shown the manifest and the small files before any weights move.

        Raises what `resolve` raises, CheckpointChanged when `ref` is no longer what lies there,
        StorageFull when neither memory nor disk can be made free, and MemoryShort by `check`.
        """
        with self._lock:
            self._unwanted.pop(ref.digest, None)
        entry = self._pin(ref, deadline, check)
        while entry is None:
            with self._lock:
                opening = self._openings.get(ref.digest)
                mine = opening is None
                if opening is None:
                    opening = self._openings[ref.digest] = Future()
            entry = (
                self._lead(ref, opening, deadline, peers, check)
                if mine
                else self._follow(ref, opening, deadline, check)
            )
        return Residency(entry, functools.partial(self._unpin, entry))

    def read_ahead(self, ref: CheckpointRef, *, peers: Sequence[str] = ()) -> Residency | None:
        """Begin to load what nobody has called, behind everything that somebody waits for.

        It takes free memory and free disk, and gives up the memory to whoever needs it meanwhile;
        it is not held open. None if it is here or on its way, or was evicted by hand since its
        last opening. Raises what `open` raises; StorageFull where no memory is free.
        """
        with self._lock:
            if ref.digest in self._unwanted or ref.digest in self._openings:
                return None
            if self._dram.holds(ref.digest):
                return None
            opening = self._openings[ref.digest] = Future()
        entry = self._lead(ref, opening, None, peers, _unchecked, ahead=True)
        coming = Residency(entry, functools.partial(self._unpin, entry))
        coming.close()
        return coming

    def evict(self, digest: str, *, disk: bool) -> None:
        """Give back what a checkpoint holds of the memory and, with `disk`, of the disk.

        It is not read ahead again, nor any further. Conflict while an instance has it open, or its
        load or the writing of its copy runs.
        """
        with self._lock:
            self._unwanted[digest] = None
            while len(self._unwanted) > UNWANTED_MAXIMUM:
                self._unwanted.popitem(last=False)
        if self._dram.stop_ahead(digest):
            for thread in self._threads_of(digest):
                thread.join(STOP_SECONDS_MAXIMUM)
        if not (self._dram.evict(digest) and (not disk or self._ssd.evict(digest))):
            raise Conflict(
                f"Expected checkpoint {digest} to be idle, found it in use.",
                "Scale its functions to 0, and try again when `stoker ps` shows no instance.",
            )
        self._on_change()

    def residents(self) -> list[Resident]:
        """Every checkpoint of which this node holds weights."""
        on_disk = self._ssd.weight_bytes()
        in_memory = {entry.digest: entry.dram_bytes for entry in self._dram.entries()}
        return [
            Resident(digest, in_memory.get(digest, 0), on_disk.get(digest, 0))
            for digest in sorted({*on_disk, *in_memory})
            if in_memory.get(digest) or on_disk.get(digest)
        ]

    def lend(self, digest: str, ordinal: int) -> LentChunk | None:
        """A chunk that is here, for another node to read; None when it is not here (yet)."""
        return lend(self._dram, self._ssd, self._context.pool, digest, ordinal)

    def bandwidths(self) -> tuple[float, float, float]:
        """Measured bytes per second (remote, SSD, peers); 0 for what has not been measured."""
        known = self._bandwidths
        rates = (known.remote, known.ssd, known.peer)
        remote, ssd, peer = (bandwidth.bytes_per_second for bandwidth in rates)
        return remote, ssd, peer

    def close(self) -> None:
        """Stop every load and wait for its threads."""
        for entry in self._dram.entries():
            entry.loading.abandon()
        with self._lock:
            loaders = list(self._loaders)
        for thread in loaders:
            thread.join(OPEN_SECONDS_MAXIMUM)
        self._context.fetcher.close()
        for executor in (self._context.writers, self._context.verifiers, self._small_files):
            executor.shutdown(cancel_futures=True)

    def _pin(self, ref: CheckpointRef, deadline: float | None, check: Check) -> DramEntry | None:
        """One that is in memory or on its way there, None when a load must begin."""
        entry = self._dram.pin(ref.digest)
        if entry is None:
            return None
        entry.loading.hasten(deadline)
        try:
            self._verify(entry.ssd, ref, check)
        except BaseException:
            self._unpin(entry, True)
            raise
        return entry

    def _verify(self, held: SsdEntry, ref: CheckpointRef, check: Check) -> None:
        self._ssd.mend(held, functools.partial(self._fetch_again, ref))
        check(held.manifest, held.files_dir)

    def _lead(
        self,
        ref: CheckpointRef,
        opening: Future[None],
        deadline: float | None,
        peers: Sequence[str],
        check: Check,
        *,
        ahead: bool = False,
    ) -> DramEntry:
        """Open for all who ask meanwhile."""
        try:
            # It may have come in between the look at the pool and the look at the openings.
            entry = self._pin(ref, deadline, check)
            entry = entry or self._start(ref, deadline, peers, check, ahead=ahead)
        except BaseException as error:
            opening.set_exception(error)
            raise
        else:
            opening.set_result(None)
            return entry
        finally:
            with self._lock:
                del self._openings[ref.digest]

    def _follow(
        self, ref: CheckpointRef, opening: Future[None], deadline: float | None, check: Check
    ) -> DramEntry | None:
        try:
            opening.result(OPEN_SECONDS_MAXIMUM)
        except (MemoryShort, StorageFull):
            # Said of another function, or of what takes free memory alone.
            return None
        except FutureTimeoutError as error:
            raise DeadlineExceeded(
                f"Expected {ref.uri} to open within {OPEN_SECONDS_MAXIMUM:.0f} s.",
                "Try again, and check the source's speed.",
            ) from error
        return self._pin(ref, deadline, check)

    def _start(
        self,
        ref: CheckpointRef,
        deadline: float | None,
        peers: Sequence[str],
        check: Check,
        *,
        ahead: bool,
    ) -> DramEntry:
        self._dram.check_capacity(chunk_count(ref.weight_bytes))
        source = self._open_source(ref.uri)
        held = self._ssd.hold(ref.digest) or self._admit(ref, source, evicting=not ahead)
        try:
            # Before the weights, behind which the disk would give these files last.
            self._verify(held, ref, check)
        except BaseException:
            self._ssd.release(held)
            raise
        asked = Peers([PeerSource(at, self._peer_access, held.manifest) for at in peers])
        given = self._context, held, source, asked, deadline
        begin = functools.partial(Loading, *given, ahead=ahead)
        return self._begin(
            held, source.uri, lambda: self._dram.add(held, begin, evicting=not ahead)
        )

    def _begin(self, held: SsdEntry, uri: str, add: Callable[[], DramEntry]) -> DramEntry:
        """Run the load of the entry that `add` makes."""
        try:
            entry = add()
        except BaseException:
            self._ssd.release(held)
            raise
        self._ssd.begin_reading(held)
        thread = threading.Thread(
            target=self._run, args=(entry, uri), name=f"load-{entry.digest}", daemon=True
        )
        with self._lock:
            self._loaders.add(thread)
        thread.start()
        return entry

    def _run(self, entry: DramEntry, uri: str) -> None:
        try:
            entry.loading.load()
            self._dram.loaded(entry)
            if entry.loading.complete:
                write_note(entry.ssd.path, PoolNote(self._memory, uri, tuple(entry.chunks)))
            self._on_change()
            entry.loading.finish()
        finally:
            self._ssd.end_reading(entry.ssd)
            self._dram.idle(entry)
            with self._lock:
                self._loaders.discard(threading.current_thread())
        self._on_change()

    def _adopt(self) -> None:
        """Take over what an earlier agent left in the pool; it is verified before it is served."""
        for held in self._ssd.entries():
            note = read_note(held.path)
            if note is None or note.memory != self._memory:
                remove_note(held.path)
                continue
            try:
                self._adopt_one(held, note)
            except (StokerError, ValueError) as error:
                _log.warning("pool_note_not_followed", uri=note.uri, cause=str(error))
                remove_note(held.path)

    def _adopt_one(self, ssd_entry: SsdEntry, note: PoolNote) -> None:
        source = self._open_source(note.uri)
        begin = functools.partial(Loading, self._context, ssd_entry, source, Peers(()), None)
        chunks = list(note.chunks)
        self._ssd.hold(ssd_entry.manifest.digest)
        entry = self._begin(ssd_entry, note.uri, lambda: self._dram.adopt(ssd_entry, begin, chunks))
        _log.info("pool_checkpoint_adopted", digest=entry.digest, dram_bytes=entry.weight_bytes)
        self._dram.unpin(entry)

    def _admit(self, ref: CheckpointRef, source: Source, *, evicting: bool) -> SsdEntry:
        with self._lock:
            manifest = self._resolved.get(ref.digest)
        manifest = manifest or resolve(source)
        if manifest.digest != ref.digest:
            raise CheckpointChanged(
                f"Expected checkpoint {ref.digest} at {ref.uri}, found {manifest.digest}.",
                "Deploy the function again to pin the model as it is now.",
            )
        self._dram.check_capacity(len(manifest.chunks))
        payloads = self._small_files.map(functools.partial(read_small_file, source), manifest.files)
        files = {
            entry.name: payload for entry, payload in zip(manifest.files, payloads, strict=True)
        }
        return self._ssd.admit(manifest, files, source.local_dir, evicting=evicting)

    def _fetch_again(self, ref: CheckpointRef, file: FileEntry) -> bytes:
        return read_small_file(self._open_source(ref.uri), file)

    def _threads_of(self, digest: str) -> list[threading.Thread]:
        with self._lock:
            return [thread for thread in self._loaders if thread.name == f"load-{digest}"]

    def _unpin(self, entry: DramEntry, cancel: bool) -> None:
        self._dram.unpin(entry, cancel=cancel)

    def _gone(self, entry: DramEntry) -> None:
        self._ssd.release(entry.ssd)
        self._on_change()
