"""The audit log: one JSON line for each request that was meant to change something.

It tells who (a token's id), what, when and with what outcome; never a body or a secret. Requests
of nobody known are left out: anybody could fill the log with them, and turn out what matters.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

FILE_BYTES_MAXIMUM = 8 * 1024 * 1024
FILES_KEPT = 5
# Of a path or a name; what is longer is cut.
TEXT_CHARACTERS_MAXIMUM = 300
ITEMS_MAXIMUM = 16

_log = structlog.get_logger()


class AuditLog:
    """Appends to `path`; full files become `path.1`, `path.2`, … and the oldest goes."""

    def __init__(self, path: Path, file_bytes_maximum: int = FILE_BYTES_MAXIMUM) -> None:
        self._path = path
        self._file_bytes_maximum = file_bytes_maximum
        self._lock = threading.Lock()

    def note(self, fields: Mapping[str, Any]) -> None:
        """Write one line, from any thread. What cannot be written goes to the process's log."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        cut = {key: _cut(value) for key, value in fields.items()}
        # In ASCII: of what is not, some ends a line for a reader or steers his terminal.
        line = json.dumps({"at": now, **cut}).encode() + b"\n"
        with self._lock:
            try:
                self._append(line)
            except OSError as error:
                _log.error("audit_not_written", reason=error.strerror, line=line.decode())

    def _append(self, line: bytes) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Opened for each line: another gateway process may have moved the file meanwhile.
        with open(self._path, "ab", opener=_open_private) as file:
            file.write(line)
            full = file.tell() >= self._file_bytes_maximum
        if full:
            self._rotate()

    def _rotate(self) -> None:
        for number in range(FILES_KEPT - 1, 0, -1):
            source = self._numbered(number - 1)
            if source.exists():
                source.replace(self._numbered(number))

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path


def _cut(value: Any) -> Any:
    if isinstance(value, list):
        return [_cut(item) for item in value[:ITEMS_MAXIMUM]]
    return value[:TEXT_CHARACTERS_MAXIMUM] if isinstance(value, str) else value


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
