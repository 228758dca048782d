"""What the pool holds, noted beside each checkpoint on the SSD for the agent that comes next.

    <digest>/resident   {"memory": identity, "uri": ..., "chunks": [...]}

A note is written when a load is complete and removed before its chunks are given back. It is only
a hint: whoever follows it verifies every chunk by its digest.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
import structlog

from stoker.native import Pool
from stoker.runtime.durable import replace_file

_NAME = "resident"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PoolNote:
    """Chunk i of the checkpoint at `uri` lies in chunk `chunks[i]` of the memory file `memory`."""

    memory: str
    uri: str
    chunks: tuple[int, ...]


def memory_identity(pool: Pool) -> str:
    """Names the pool's memory file among all that this machine ever had."""
    status = os.fstat(pool.fd)
    return f"{_BOOT_ID.read_text().strip()}:{status.st_dev}:{status.st_ino}"


def write_note(folder: Path, note: PoolNote) -> None:
    try:
        replace_file(folder / _NAME, orjson.dumps(asdict(note)))
    except OSError as error:
        _log.warning("pool_note_not_written", path=str(folder), error=error.strerror)


def read_note(folder: Path) -> PoolNote | None:
    """The note; None when there is none that makes sense."""
    try:
        fields = orjson.loads((folder / _NAME).read_bytes())
        note = PoolNote(fields["memory"], fields["uri"], tuple(fields["chunks"]))
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
        return None
    sound = isinstance(note.memory, str) and isinstance(note.uri, str)
    sound = sound and all(isinstance(chunk, int) and chunk >= 0 for chunk in note.chunks)
    return note if sound else None


def remove_note(folder: Path) -> None:
    try:
        (folder / _NAME).unlink(missing_ok=True)
    except OSError as error:
        _log.warning("pool_note_not_removed", path=str(folder), error=error.strerror)
