"""The SSD tier: one folder per checkpoint, bounded, evicted greedy-dual.

    <digest>/manifest.json      its SHA-256 is the folder's name
    <digest>/layout.json        <digest>/files/config.json …   <digest>/sums.json: see small_files
    <digest>/chunks/<ordinal>   written under another name, synced, renamed: whole or absent
    <digest>/digests            `<ordinal> <hex> <CRC-32>` lines, learnt while an unpacked
                                checkpoint loaded; a line that its check does not fit is no line
    <digest>/origin             there for a file:// checkpoint, whose weights are read in place
    <digest>/resident           see pool_note

A partial copy is usable chunk by chunk. A chunk without a known digest is not used. Since whatever
is read is verified, a crash of the machine can only cost work: names of chunks are not synced.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import structlog

from stoker.placement.errors import CheckpointError, StorageFull
from stoker.runtime.checkpoint import manifest as manifests
from stoker.runtime.checkpoint import small_files
from stoker.runtime.checkpoint.eviction import GreedyDual
from stoker.runtime.checkpoint.layout import encode_layout
from stoker.runtime.checkpoint.manifest import FileEntry, Manifest
from stoker.runtime.durable import sync_folder, write_file

_DIGEST_LINE = re.compile(r"^(\d{1,9}) ([0-9a-f]{32}) ([0-9a-f]{8})$", re.MULTILINE)
_log = structlog.get_logger()


@dataclass
class SsdEntry:
    """One checkpoint's folder. Counts are guarded by the tier's lock."""

    manifest: Manifest
    path: Path
    in_place: bool
    files_bytes: int
    cached: dict[int, int] = field(default_factory=dict)  # ordinal -> bytes
    digests: dict[int, str] = field(default_factory=dict)
    holders: int = 0  # its small files are in use
    readers: int = 0  # its chunks are in use

    @property
    def files_dir(self) -> Path:
        return self.path / small_files.FILES_NAME

    @property
    def layout_path(self) -> Path:
        return self.path / small_files.LAYOUT_NAME

    @cached_property
    def layout(self) -> bytes:
        """What must be at `layout_path`."""
        return encode_layout(self.manifest)

    @property
    def weight_bytes(self) -> int:
        """How much of the weights this node can read without the network."""
        return self.manifest.weight_bytes if self.in_place else sum(self.cached.values())

    @property
    def disk_bytes(self) -> int:
        return self.files_bytes + sum(self.cached.values())

    def chunk_path(self, ordinal: int) -> Path:
        return self.path / "chunks" / str(ordinal)


class SsdTier:
    """Owns `directory`; `reload_seconds` estimates the cost of fetching that many bytes again."""

    def __init__(
        self, directory: Path, capacity_bytes: int, reload_seconds: Callable[[int], float]
    ) -> None:
        self._directory = directory
        self._capacity_bytes = capacity_bytes
        self._reload_seconds = reload_seconds
        self._lock = threading.Lock()
        self._mending = threading.Lock()
        self._order = GreedyDual()
        self._reserved_bytes = 0
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._entries = self._sweep()
        for digest in self._entries:
            self._touch(digest)
        with self._lock:
            self._make_room(0)

    def hold(self, digest: str) -> SsdEntry | None:
        """The checkpoint's folder, kept until `release`; None when there is none."""
        with self._lock:
            entry = self._entries.get(digest)
            if entry is not None:
                entry.holders += 1
                self._touch(digest)
            return entry

    def release(self, entry: SsdEntry) -> None:
        with self._lock:
            entry.holders -= 1

    def begin_reading(self, entry: SsdEntry) -> None:
        """From now until `end_reading` no chunk of `entry` is evicted."""
        with self._lock:
            entry.readers += 1

    def end_reading(self, entry: SsdEntry) -> None:
        with self._lock:
            entry.readers -= 1

    def admit(
        self,
        manifest: Manifest,
        files: dict[str, bytes],
        origin: Path | None,
        *,
        evicting: bool = True,
    ) -> SsdEntry:
        """Store the small files; the entry is held. StorageFull when they do not fit."""
        digest = manifest.digest
        payloads = small_files.payloads(encode_layout(manifest), files)
        payloads["manifest.json"] = manifests.encode(manifest)
        files_bytes = sum(map(len, payloads.values()))
        if not self._reserve(files_bytes, evicting=evicting):
            raise self._full(files_bytes)
        temporary = self._directory / f"{digest}.tmp"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            (temporary / "chunks").mkdir(parents=True, mode=0o700)
            (temporary / small_files.FILES_NAME).mkdir()
            for name, payload in payloads.items():
                path = temporary / name
                path.parent.mkdir(parents=True, exist_ok=True)
                write_file(path, payload)
            if origin is not None:
                write_file(temporary / "origin", os.fsencode(origin))
            temporary.rename(self._directory / digest)
            sync_folder(self._directory)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise self._failed(error) from error
        finally:
            self._unreserve(files_bytes)
        entry = SsdEntry(manifest, self._directory / digest, origin is not None, files_bytes)
        with self._lock:
            entry.holders = 1
            self._entries[digest] = entry
            self._touch(digest)
        return entry

    def mend(self, entry: SsdEntry, fetch: Callable[[FileEntry], bytes]) -> None:
        """Verify layout and small files; what is damaged is replaced, by what `fetch` gives.

        Raises what `fetch` raises, and StorageFull when the disk refuses the replacement.
        """
        if not small_files.damaged(entry.path, entry.manifest, entry.layout):
            return
        try:
            with self._mending:
                names = small_files.mend(entry.path, entry.manifest, entry.layout, fetch)
        except OSError as error:
            raise self._failed(error) from error
        _log.warning("ssd_files_mended", path=str(entry.path), names=names)

    def reserve_chunk(self, byte_count: int, *, evicting: bool = True) -> bool:
        """Make room for a chunk, if need be by `evicting` others; False when there is none."""
        return self._reserve(byte_count, evicting=evicting)

    def chunk_written(self, entry: SsdEntry, ordinal: int, byte_count: int, ok: bool) -> None:
        """Settle a reservation: the chunk is now in place, or was not written."""
        with self._lock:
            self._reserved_bytes -= byte_count
            if ok:
                entry.cached[ordinal] = byte_count

    def learn(self, entry: SsdEntry, ordinal: int, digest: str) -> None:
        """Remember the digest of a chunk that was first seen without one."""
        if entry.digests.get(ordinal) == digest:
            return
        entry.digests[ordinal] = digest
        try:
            with open(entry.path / "digests", "ab", buffering=0) as file:
                # The line break leads, so that a torn line spoils no other.
                file.write(f"\n{_digest_line(ordinal, digest)}".encode())
        except OSError as error:
            _log.warning("chunk_digest_not_kept", path=str(entry.path), error=error.strerror)

    def quarantine(self, entry: SsdEntry, ordinal: int) -> None:
        """Delete a cached chunk that did not verify."""
        with self._lock:
            entry.cached.pop(ordinal, None)
        _unlink(entry.chunk_path(ordinal))

    def evict(self, digest: str) -> bool:
        """Delete a checkpoint's folder; False while it is in use."""
        with self._lock:
            entry = self._entries.get(digest)
            if entry is not None and (entry.holders or entry.readers):
                return False
            if entry is not None:
                self._evict(digest)
            return True

    def entries(self) -> list[SsdEntry]:
        with self._lock:
            return list(self._entries.values())

    def weight_bytes(self) -> dict[str, int]:
        """Per checkpoint, the weight bytes that this node can read without the network."""
        with self._lock:
            return {digest: entry.weight_bytes for digest, entry in self._entries.items()}

    def used_bytes(self) -> int:
        with self._lock:
            return self._used()

    def _used(self) -> int:
        return self._reserved_bytes + sum(entry.disk_bytes for entry in self._entries.values())

    def _touch(self, digest: str) -> None:
        size = self._entries[digest].manifest.weight_bytes
        self._order.touch(digest, self._reload_seconds(size), size)

    def _reserve(self, byte_count: int, *, evicting: bool) -> bool:
        with self._lock:
            fits = self._used() + byte_count <= self._capacity_bytes
            fits = fits or (evicting and self._make_room(byte_count))
            if fits:
                self._reserved_bytes += byte_count
            return fits

    def _unreserve(self, byte_count: int) -> None:
        with self._lock:
            self._reserved_bytes -= byte_count

    def _make_room(self, byte_count: int) -> bool:
        """Evict until `byte_count` more fit. Of a folder in use only the idle chunks go."""
        while self._used() + byte_count > self._capacity_bytes:
            digest = self._order.victim(
                digest
                for digest, entry in self._entries.items()
                if not entry.readers and (entry.cached or not entry.holders)
            )
            if digest is None:
                return False
            self._evict(digest)
        return True

    def _evict(self, digest: str) -> None:
        entry = self._entries[digest]
        _log.info("ssd_checkpoint_evicted", digest=digest, ssd_bytes=entry.disk_bytes)
        if entry.holders:
            for ordinal in entry.cached:
                _unlink(entry.chunk_path(ordinal))
            entry.cached.clear()
            return
        del self._entries[digest]
        self._order.forget(digest)
        _remove_folder(entry.path)

    def _sweep(self) -> dict[str, SsdEntry]:
        """What an earlier process left: whole folders are kept, everything else is removed."""
        folders = sorted(self._directory.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        entries = {}
        for path in folders:
            entry = _load_entry(path)
            if entry is not None:
                entries[path.name] = entry
            elif path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return entries

    def _full(self, byte_count: int) -> StorageFull:
        return StorageFull(
            f"Expected room for {byte_count} bytes in {self._directory}, found "
            f"{self._capacity_bytes - self.used_bytes()} of {self._capacity_bytes} free "
            "and the rest in use.",
            "Raise STOKER_SSD_BYTES or run fewer models on this node.",
        )

    def _failed(self, error: OSError) -> StorageFull:
        found = "a full disk" if error.errno == errno.ENOSPC else str(error.strerror)
        return StorageFull(
            f"Expected to write to {self._directory}, found: {found}.",
            "Free space on the disk that holds the node's state.",
        )


def _load_entry(path: Path) -> SsdEntry | None:
    try:
        manifest = manifests.decode((path / "manifest.json").read_bytes())
        if manifest.digest != path.name:
            return None
        for leftover in (*path.glob("*.tmp"), *(path / small_files.FILES_NAME).rglob("*.tmp")):
            leftover.unlink()
        sizes = [f.stat().st_size for f in _small_paths(path) if f.is_file()]
        entry = SsdEntry(manifest, path, (path / "origin").exists(), sum(sizes))
        entry.digests = _learnt_digests(path / "digests")
        for chunk in (path / "chunks").iterdir():
            if not _is_sound_chunk(chunk, entry):
                chunk.unlink()
        entry.cached = {int(p.name): p.stat().st_size for p in (path / "chunks").iterdir()}
    except (OSError, CheckpointError):
        return None
    return entry


def _small_paths(folder: Path) -> Iterator[Path]:
    yield from (folder / small_files.FILES_NAME).rglob("*")
    yield from folder.glob("*.json")


def _is_sound_chunk(path: Path, entry: SsdEntry) -> bool:
    chunks = entry.manifest.chunks
    if not path.name.isdecimal() or int(path.name) >= len(chunks):
        return False
    chunk = chunks[int(path.name)]
    known = chunk.digest is not None or chunk.ordinal in entry.digests
    return known and str(chunk.ordinal) == path.name and path.stat().st_size == chunk.bytes


def _learnt_digests(path: Path) -> dict[int, str]:
    if not path.exists():
        return {}
    text = path.read_text(errors="replace")
    return {
        int(line[1]): line[2]
        for line in _DIGEST_LINE.finditer(text)
        if line[0] == _digest_line(int(line[1]), line[2])
    }


def _digest_line(ordinal: int, digest: str) -> str:
    text = f"{ordinal} {digest}"
    return f"{text} {zlib.crc32(text.encode()):08x}"


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("ssd_chunk_not_removed", path=str(path), error=error.strerror)


def _remove_folder(path: Path) -> None:
    # Renamed first, so that a crash leaves no folder that looks whole.
    doomed = path.with_name(f"{path.name}.tmp")
    try:
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
    except OSError as error:
        _log.warning("ssd_checkpoint_not_removed", path=str(path), error=error.strerror)
        return
    shutil.rmtree(doomed, ignore_errors=True)
