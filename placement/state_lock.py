"""One process of a kind for each state directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from stoker.placement.errors import Conflict


@contextlib.contextmanager
def lock_state(state: Path, kind: str) -> Iterator[None]:
    """Hold run/`kind`.lock until this process ends, however it does; Conflict if another holds it.

    The kernel lets go of the lock, so that none is ever left behind.
    """
    path = state / "run" / f"{kind}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise Conflict(
                f"Expected no other process to hold {path}, found process {holder}.",
                "Stop it first, or name another directory with --state or STOKER_STATE.",
            ) from error
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
