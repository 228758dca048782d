"""Bundles: the archives of functions' code, each kept under the SHA-256 of its bytes.

Gateways put them, nodes get them and check them against their name. Where they lie:

    s3://bucket/prefix    in a bucket that every machine reaches
    file:///folder        in a folder that every machine sees
    not said              beside the SQLite file; without one, in the cluster's store, if small
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from stoker.placement.errors import BadRequest, PayloadTooLarge, StorageFull, Unavailable
from stoker.placement.names import valid_digest
from stoker.placement.store import Entry
from stoker.placement.stores import sqlite_file_of

BUNDLE_BYTES_MAXIMUM = 64 << 20
# What fits into one entry of any store.
STORED_BYTES_MAXIMUM = 900_000


class Bundles(Protocol):
    """Both block; what is put is there for every node when `put` returns."""

    def put(self, digest: str, archive: bytes) -> None:
        """PayloadTooLarge, StorageFull, Unavailable."""

    def get(self, digest: str) -> bytes | None:
        """The bytes under that name, unchecked, or None; Unavailable."""


class EntryStore(Protocol):
    """What this module needs of the store."""

    def get(self, path: str) -> Entry | None: ...

    def put(self, path: str, value: bytes) -> int: ...


def open_bundles(url: str | None, store_url: str, store: EntryStore) -> Bundles:
    """Where bundles lie in this cluster; BadRequest for a URL that is neither of the two."""
    if url is None:
        beside = sqlite_file_of(store_url)
        return StoredBundles(store) if beside is None else FolderBundles(beside.parent / "bundles")
    parts = urlsplit(url)
    plain = not (parts.query or parts.fragment)
    if parts.scheme == "file" and plain and not parts.netloc and len(parts.path) > 1:
        return FolderBundles(Path(parts.path))
    if parts.scheme == "s3" and plain and parts.netloc and "@" not in parts.netloc:
        from stoker.placement.bundles_s3 import S3Bundles  # not everyone has a bucket

        return S3Bundles(parts.netloc, parts.path.strip("/"))
    raise BadRequest(
        f"Expected s3://bucket/prefix or file:///folder in STOKER_BUNDLES, found {url!r:.100}.",
        "Correct STOKER_BUNDLES, or unset it.",
    )


class FolderBundles:
    """A file each, whole or absent."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, digest: str, archive: bytes) -> None:
        target = self._path(digest)
        check_size(len(archive), BUNDLE_BYTES_MAXIMUM)
        if target.exists():
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor, name = tempfile.mkstemp(prefix=".", dir=self._folder)
            try:
                with open(descriptor, "wb") as file:
                    file.write(archive)
                    file.flush()
                    os.fsync(file.fileno())
                Path(name).rename(target)
            except OSError:
                with contextlib.suppress(OSError):
                    Path(name).unlink()
                raise
        except OSError as error:
            raise StorageFull(
                f"Expected room for {len(archive)} bytes of code in {self._folder}, "
                f"found: {error.strerror}.",
                "Make room there, or name another place in STOKER_BUNDLES.",
            ) from error

    def get(self, digest: str) -> bytes | None:
        path = self._path(digest)
        try:
            with path.open("rb") as file:
                return file.read(BUNDLE_BYTES_MAXIMUM)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unavailable(
                f"Expected to read {path}, found: {error.strerror}.", "Make it readable."
            ) from error

    def _path(self, digest: str) -> Path:
        return self._folder / f"{valid_digest(digest)}.tar.gz"


class StoredBundles:
    """In the store itself, where a cluster has nothing better."""

    def __init__(self, store: EntryStore) -> None:
        self._store = store

    def put(self, digest: str, archive: bytes) -> None:
        check_size(len(archive), STORED_BYTES_MAXIMUM, "Set STOKER_BUNDLES to s3://bucket/prefix.")
        self._store.put(f"/code/{valid_digest(digest)}", archive)

    def get(self, digest: str) -> bytes | None:
        entry = self._store.get(f"/code/{valid_digest(digest)}")
        return None if entry is None else entry.value


def check_size(found: int, most: int, remedy: str = "") -> None:
    if found > most:
        raise PayloadTooLarge(
            f"Expected a handler archive of at most {most} bytes, found {found}.",
            remedy or "Keep data out of the handler folder; fetch it at run time.",
        )
