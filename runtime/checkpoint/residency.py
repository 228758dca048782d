"""A checkpoint held open on this node."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from stoker.native import Progress
from stoker.placement.errors import DeadlineExceeded, StokerError
from stoker.runtime.checkpoint.dram import DramEntry
from stoker.runtime.checkpoint.fetch import decode_failure


class Residency:
    """Keeps the chunks in the pool and the small files on disk until `close`.

    A process may map `chunks` (native Mapping, `byte_count` bytes) only while this is open, and
    may use bytes below the watermark of `progress` only. `resident` says that everything was in
    memory when it was opened.
    """

    def __init__(self, entry: DramEntry, unpin: Callable[[bool], None]) -> None:
        self.digest = entry.digest
        self.chunks = list(entry.chunks)
        self.byte_count = entry.ssd.manifest.byte_count
        self.progress: Progress = entry.loading.progress
        self.files_dir: Path = entry.ssd.files_dir
        self.layout_path: Path = entry.ssd.layout_path
        self.resident = entry.loading.complete
        self._unpin = unpin
        self._lock = threading.Lock()
        self._open = True

    def wait(self, timeout_seconds: float) -> None:
        """Return when everything is in memory; raise what the load failed with.

        DeadlineExceeded after `timeout_seconds`; StokerError when the load was cancelled.
        """
        deadline = time.monotonic() + timeout_seconds
        try:
            self.progress.wait(self.byte_count, timeout_seconds)
            state = self._settled_state(deadline)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"Expected {self.byte_count} bytes of weights within {timeout_seconds:.0f} s, "
                f"found {self.progress.watermark_bytes}.",
                "Try again: the load goes on.",
            ) from error
        if state == "failed":
            raise decode_failure(self.progress.error)
        if state == "cancelled":
            raise StokerError("The load was cancelled.", "Open the checkpoint again.")

    def close(self) -> None:
        """Give the pin back; closing twice does nothing. A load that runs goes on."""
        self._close(False)

    def cancel(self) -> None:
        """Close, and stop the load if nobody else has the checkpoint open."""
        self._close(True)

    def _close(self, cancel: bool) -> None:
        with self._lock:
            if not self._open:
                return
            self._open = False
        self._unpin(cancel)

    def _settled_state(self, deadline: float) -> str:
        """The last chunk is published a moment before the state is; poll that moment away."""
        while self.progress.state == "loading":
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.001)
        return str(self.progress.state)
