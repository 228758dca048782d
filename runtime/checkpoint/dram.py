"""The DRAM tier: which checkpoints hold which chunks of the pool.

A checkpoint is pinned while somebody has it open, busy while its load or write-behind runs.
Only what is neither may be evicted, for workers map the chunks of what they have open; but a load
that comes ahead of any call is stopped for whoever needs its room. What is evicted gives
way from its end, chunk by chunk, so that its next load finds its first layers:

    |<---- r* ---->|<- hidden ->|
    |0|1|2|3|4|5|6|7|8|9|10|11|12|    hidden: read while a process starts, so given up first
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from stoker.native import CHUNK_BYTES, Pool
from stoker.placement.errors import StorageFull
from stoker.runtime.checkpoint.eviction import GreedyDual
from stoker.runtime.checkpoint.fetch import Loading
from stoker.runtime.checkpoint.pool_note import remove_note
from stoker.runtime.checkpoint.ssd import SsdEntry

ALLOCATE_SECONDS_MAXIMUM = 30.0
Begin = Callable[[list[int], int], Loading]
"""Begins a load into these chunks, of which the first so many hold their bytes already."""

_log = structlog.get_logger()


@dataclass(eq=False)
class DramEntry:
    """One checkpoint in the pool. `chunks` and what is below is guarded by the tier's lock."""

    digest: str
    ssd: SsdEntry
    loading: Loading
    chunks: list[int]
    pins: int = 1
    busy: bool = True
    retired: bool = False  # no longer to be opened: failed, cancelled or evicted

    @property
    def weight_bytes(self) -> int:
        return self.ssd.manifest.weight_bytes

    @property
    def trimmed(self) -> bool:
        """Whether it has given chunks back, and must be loaded before it is opened."""
        return len(self.chunks) < len(self.ssd.manifest.chunks)

    @property
    def dram_bytes(self) -> int:
        """Weight bytes that are in memory, from the first on."""
        if self.loading.complete:
            return min(len(self.chunks) * CHUNK_BYTES, self.weight_bytes)
        return min(self.loading.progress.watermark_bytes, self.weight_bytes)


class DramTier:
    """`on_gone` is told of an entry whose chunks have been given back, the lock not held.

    `reload_seconds` says how long so many bytes take from the disk, `hidden_bytes` how many come
    while a process starts.
    """

    def __init__(
        self,
        pool: Pool,
        reload_seconds: Callable[[int], float],
        hidden_bytes: Callable[[], int],
        on_gone: Callable[[DramEntry], None],
    ) -> None:
        self._pool = pool
        self._reload_seconds = reload_seconds
        self._hidden_bytes = hidden_bytes
        self._on_gone = on_gone
        self._changed = threading.Condition()
        self._entries: dict[str, DramEntry] = {}
        self._leaving: set[DramEntry] = set()  # retired, with chunks that are still in use
        self._order = GreedyDual()

    def pin(self, digest: str) -> DramEntry | None:
        """The entry, one pin richer; None when it must be loaded."""
        with self._changed:
            entry = self._entries.get(digest)
            if entry is None or entry.retired or entry.trimmed:
                return None
            entry.pins += 1
            self._touch(entry)
            return entry

    def holds(self, digest: str) -> bool:
        """Whether all of it is in memory, or on its way there."""
        with self._changed:
            entry = self._entries.get(digest)
            return entry is not None and not entry.trimmed

    def add(self, ssd: SsdEntry, begin: Begin, *, evicting: bool = True) -> DramEntry:
        """Allocate chunks and `begin` a load into them; the entry is pinned and busy.

        Without `evicting`, StorageFull where nothing is free; such an entry is the first to go
        until it is pinned again.
        """
        if not evicting:
            self._check_free(ssd)
        kept = self._take_over(ssd.manifest.digest)
        try:
            more = self._allocate(len(ssd.manifest.chunks) - len(kept), evicting=evicting)
        except BaseException:
            self._give_back(kept)
            raise
        return self._add(ssd, begin, kept + more, len(kept), touched=evicting)

    def _check_free(self, ssd: SsdEntry) -> None:
        """StorageFull, before what is left of it is taken over."""
        with self._changed:
            entry = self._entries.get(ssd.manifest.digest)
            count = len(ssd.manifest.chunks) - (len(entry.chunks) if entry is not None else 0)
            if self._pool.free_count < count:
                raise self._full(count)

    def adopt(self, ssd: SsdEntry, begin: Begin, chunks: list[int]) -> DramEntry:
        """As `add`, in chunks that hold the checkpoint already; ValueError if they are not free."""
        self._pool.claim(chunks)
        return self._add(ssd, begin, chunks, len(chunks))

    def _take_over(self, digest: str) -> list[int]:
        """The chunks that are left of a trimmed checkpoint."""
        with self._changed:
            entry = self._entries.get(digest)
            if entry is None or not entry.trimmed:
                return []
            chunks, entry.chunks = entry.chunks, []
            entry.retired = True
            del self._entries[digest]
        self._tell([entry])
        return chunks

    def _add(
        self,
        ssd: SsdEntry,
        begin: Begin,
        chunks: list[int],
        filled_count: int,
        *,
        touched: bool = True,
    ) -> DramEntry:
        digest = ssd.manifest.digest
        try:
            entry = DramEntry(digest, ssd, begin(chunks, filled_count), chunks)
        except BaseException:
            self._give_back(chunks)
            raise
        with self._changed:
            self._entries[digest] = entry
            if touched:
                self._touch(entry)
        return entry

    def _give_back(self, chunks: list[int]) -> None:
        with self._changed:
            self._pool.release(chunks)
            self._changed.notify_all()

    def check_capacity(self, count: int) -> None:
        """StorageFull for a checkpoint of more chunks than there are."""
        if count > self._pool.chunk_count:
            raise StorageFull(
                f"Expected at most {self._pool.capacity_bytes} bytes of weights, the node's whole "
                f"memory for checkpoints, found {count * CHUNK_BYTES}.",
                "Raise STOKER_DRAM_BYTES, or place the model on a larger node.",
                asked_bytes=count * CHUNK_BYTES,
                capacity_bytes=self._pool.capacity_bytes,
            )

    def unpin(self, entry: DramEntry, *, cancel: bool = False) -> None:
        """With `cancel`, a load that nobody else waits for is stopped."""
        with self._changed:
            entry.pins -= 1
            stop = cancel and not entry.pins and not entry.loading.complete
            if stop:
                self._retire(entry)
            gone = self._settle(entry)
        if stop:
            entry.loading.cancel()
        self._tell(gone)

    def loaded(self, entry: DramEntry) -> None:
        """The load is over, well or not; its write-behind may still run."""
        with self._changed:
            if not entry.loading.complete:
                self._retire(entry)

    def idle(self, entry: DramEntry) -> None:
        """Nothing of ours touches the entry's chunks any more."""
        with self._changed:
            entry.busy = False
            gone = self._settle(entry)
            self._changed.notify_all()
        self._tell(gone)

    def stop_ahead(self, digest: str) -> bool:
        """Stop the load of what nobody has called yet; False if there is none."""
        with self._changed:
            entry = self._entries.get(digest)
            if entry is None or entry.pins or not entry.busy or not entry.loading.ahead:
                return False
        entry.loading.abandon()
        return True

    def evict(self, digest: str) -> bool:
        """Give the chunks of a checkpoint back; False while somebody has it open or it loads."""
        with self._changed:
            entry = self._entries.get(digest)
            if entry is not None and (entry.pins or entry.busy):
                return False
            gone = [] if entry is None else self._evict(entry)
        self._tell(gone)
        return True

    def _allocate(self, count: int, *, evicting: bool) -> list[int]:
        """`count` chunks, evicting for them, waiting briefly for write-behinds; StorageFull."""
        deadline = time.monotonic() + ALLOCATE_SECONDS_MAXIMUM
        gone: list[DramEntry] = []
        try:
            with self._changed:
                while True:
                    if evicting:
                        gone += self._make_room(count)
                    if self._pool.free_count >= count:
                        return self._pool.allocate(count)
                    remaining = deadline - time.monotonic()
                    if not evicting or not self._can_ever_fit(count) or remaining <= 0:
                        raise self._full(count)
                    self._changed.wait(remaining)
        finally:
            self._tell(gone)

    def entries(self) -> list[DramEntry]:
        with self._changed:
            return list(self._entries.values())

    def _make_room(self, count: int) -> list[DramEntry]:
        gone: list[DramEntry] = []
        if not self._can_ever_fit(count):
            return gone  # evicting would help nobody
        coming = self._stop_ahead(count)
        hidden_count = self._hidden_bytes() // CHUNK_BYTES
        for spares_prefixes in (True, False):
            while (lack := count - coming - self._pool.free_count) > 0:
                surplus = {
                    entry.digest: self._surplus(entry, hidden_count if spares_prefixes else None)
                    for entry in self._entries.values()
                    if not entry.pins and not entry.busy
                }
                digest = self._order.victim(key for key, chunks in surplus.items() if chunks > 0)
                if digest is None:
                    break
                gone += self._trim(self._entries[digest], min(lack, surplus[digest]))
        return gone

    def _stop_ahead(self, count: int) -> int:
        """Stop loads for which nobody waits; how many chunks will soon be free without evicting."""
        coming = sum(len(entry.chunks) for entry in self._leaving if not entry.pins)
        ahead = (entry for entry in self._entries.values() if not entry.pins and entry.busy)
        for entry in [entry for entry in ahead if entry.loading.ahead]:
            if count - coming - self._pool.free_count <= 0:
                break
            _log.info("read_ahead_stopped", digest=entry.digest)
            self._retire(entry)
            entry.loading.abandon()
            coming += len(entry.chunks)
        return coming

    def _surplus(self, entry: DramEntry, hidden_count: int | None) -> int:
        """How many chunks it may give up: those hidden behind its process's start, or all."""
        if hidden_count is None:
            return len(entry.chunks)
        if not entry.loading.is_local:
            return 0
        given = len(entry.ssd.manifest.chunks) - len(entry.chunks)
        return min(hidden_count - given, len(entry.chunks))

    def _trim(self, entry: DramEntry, count: int) -> list[DramEntry]:
        """Give the last `count` chunks back; what is left is the beginning of the next load."""
        if count == len(entry.chunks):
            return self._evict(entry)
        # First, so that no note ever names chunks that hold something else.
        remove_note(entry.ssd.path)
        entry.chunks, last = entry.chunks[:-count], entry.chunks[-count:]
        self._give_back(last)
        _log.info("dram_checkpoint_trimmed", digest=entry.digest, dram_bytes=entry.dram_bytes)
        return []

    def _evict(self, entry: DramEntry) -> list[DramEntry]:
        _log.info("dram_checkpoint_evicted", digest=entry.digest, dram_bytes=entry.weight_bytes)
        self._retire(entry)
        return self._settle(entry)

    def _can_ever_fit(self, count: int) -> bool:
        """Whether what nobody has open would be enough room, if it were idle."""
        every = (*self._entries.values(), *self._leaving)
        loose = sum(len(entry.chunks) for entry in every if not entry.pins)
        return self._pool.free_count + loose >= count

    def _retire(self, entry: DramEntry) -> None:
        entry.retired = True
        self._leaving.add(entry)
        if self._entries.get(entry.digest) is entry:
            del self._entries[entry.digest]
            self._order.forget(entry.digest)

    def _settle(self, entry: DramEntry) -> list[DramEntry]:
        """Give the chunks of a retired entry back once nobody touches them."""
        if not entry.retired or entry.pins or entry.busy or not entry.chunks:
            return []
        # First, so that no note ever names chunks that hold something else.
        remove_note(entry.ssd.path)
        self._give_back(entry.chunks)
        entry.chunks = []
        self._leaving.discard(entry)
        return [entry]

    def _tell(self, gone: list[DramEntry]) -> None:
        for entry in gone:
            self._on_gone(entry)

    def _touch(self, entry: DramEntry) -> None:
        size = entry.weight_bytes
        self._order.touch(entry.digest, self._reload_seconds(size), size)

    def _full(self, count: int) -> StorageFull:
        free = self._pool.free_count
        pinned = sum(len(entry.chunks) for entry in self._entries.values() if entry.pins)
        return StorageFull(
            f"Expected room for {count * CHUNK_BYTES} bytes of weights in the node's memory, "
            f"found {free * CHUNK_BYTES} free and {pinned * CHUNK_BYTES} in use of "
            f"{self._pool.capacity_bytes}.",
            "Raise STOKER_DRAM_BYTES, or wait until another model's instances are idle.",
            asked_bytes=count * CHUNK_BYTES,
            free_bytes=free * CHUNK_BYTES,
            pinned_bytes=pinned * CHUNK_BYTES,
        )
