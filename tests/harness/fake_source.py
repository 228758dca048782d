"""A source in memory that fails on demand; it passes the contract of the real ones."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

from stoker.placement.errors import (
    CheckpointChanged,
    CheckpointError,
    CheckpointMissing,
    StokerError,
)
from stoker.runtime.checkpoint.manifest import check_name
from stoker.runtime.checkpoint.source import SourceFile


class FakeSource:
    """`before_read(name, offset)` runs before every read and may raise or wait."""

    def __init__(self, files: dict[str, bytes], uri: str = "s3://fake/model") -> None:
        self.uri = uri
        self.local_dir: Path | None = None
        self.files = dict(files)
        self.before_read: Callable[[str, int], None] = lambda name, offset: None
        self.reads: list[tuple[str, int]] = []
        self._lock = threading.Lock()

    @staticmethod
    def of_folder(folder: Path) -> FakeSource:
        files = [path for path in folder.rglob("*") if path.is_file()]
        return FakeSource({str(path.relative_to(folder)): path.read_bytes() for path in files})

    def list(self) -> tuple[SourceFile, ...]:
        if not self.files:
            raise CheckpointMissing(f"Expected a model at {self.uri}, found nothing.")
        listed = [
            SourceFile(name, len(payload), _version(payload))
            for name, payload in sorted(self.files.items())
        ]
        return tuple(f for f in listed if f.name.count("/") <= 1 and "/." not in f"/{f.name}")

    def read(self, name: str, offset: int, into: memoryview, version: str | None) -> None:
        payload = self._pinned(name, version)
        with self._lock:
            self.reads.append((name, offset))
        self.before_read(name, offset)
        if offset + len(into) > len(payload):
            raise CheckpointChanged(f"Expected {name} to be longer.")
        into[:] = payload[offset : offset + len(into)]

    def read_small(self, name: str, limit: int, version: str | None = None) -> bytes:
        payload = self._pinned(name, version)
        self.before_read(name, 0)
        if len(payload) > limit:
            raise CheckpointError(f"Expected at most {limit} bytes in {name}.")
        return payload

    def fail_with(self, error: StokerError, times: int = 1_000_000) -> None:
        """Make the next `times` reads raise `error`."""
        left = [times]

        def before_read(name: str, offset: int) -> None:
            if left[0] > 0:
                left[0] -= 1
                raise error

        self.before_read = before_read

    def _pinned(self, name: str, version: str | None) -> bytes:
        check_name(name)
        payload = self.files.get(name)
        if payload is None:
            raise CheckpointMissing(f"Expected {name} at {self.uri}, found none.")
        if version is not None and version != _version(payload):
            raise CheckpointChanged(f"Expected {version} of {name}.")
        return payload


def _version(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()
