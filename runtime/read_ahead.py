"""What the leader ordered to bring before anybody calls it: one checkpoint after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from stoker.placement.errors import StokerError
from stoker.placement.records import CheckpointRef

# Behind what somebody waits for, a load may take long.
BRING_SECONDS_MAXIMUM = 3600.0
CLOSE_SECONDS_MAXIMUM = 10.0
_log = structlog.get_logger()


class Coming(Protocol):
    """A load that runs; `wait` raises what it ended with."""

    def wait(self, timeout_seconds: float) -> None: ...


Bring = Callable[[CheckpointRef], Coming | None]
"""Begins to load a checkpoint; None if there is nothing to do. It may block."""


class ReadAhead:
    """Follows the newest order in a thread of its own. Each checkpoint is tried once per order."""

    def __init__(self, bring: Bring) -> None:
        self._bring = bring
        self._changed = threading.Condition()
        self._order: tuple[CheckpointRef, ...] = ()
        self._tried: set[str] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
        self._thread.start()

    def follow(self, order: Sequence[CheckpointRef]) -> None:
        """Go on with this order; what is under way goes on as well. Any thread may call."""
        with self._changed:
            self._order, self._tried = tuple(order), set()
            self._changed.notify_all()

    def close(self) -> None:
        """Begin nothing more; the owner of the loads stops the one that runs."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def join(self) -> None:
        self._thread.join(CLOSE_SECONDS_MAXIMUM)

    def _run(self) -> None:
        while (ref := self._next()) is not None:
            try:
                coming = self._bring(ref)
                if coming is not None:
                    coming.wait(BRING_SECONDS_MAXIMUM)
                    _log.info("checkpoint_read_ahead", uri=ref.uri, digest=ref.digest)
            except StokerError as error:
                _log.info("read_ahead_ended", uri=ref.uri, code=error.code, cause=error.cause)
            except Exception:  # noqa: BLE001 - a bug in one load must not end all others
                _log.exception("read_ahead_broken", uri=ref.uri)

    def _next(self) -> CheckpointRef | None:
        """The next one that was not tried, waited for; None when all ends."""
        with self._changed:
            while not self._closed:
                for ref in self._order:
                    if ref.digest not in self._tried:
                        self._tried.add(ref.digest)
                        return ref
                self._changed.wait()
        return None
