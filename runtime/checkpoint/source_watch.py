"""Which transfers are given up because they fall behind the others."""

from __future__ import annotations

import socket
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

PATIENCE_SECONDS = 0.25
BEHIND_FACTOR = 8.0
LONE_PATIENCE_SECONDS = 3.0
LONE_BYTES_PER_SECOND = 64e3
LOOK_SECONDS = 0.05
FINISHED_MAXIMUM = 64


def falls_behind(
    elapsed_seconds: float, received_bytes: int, total_bytes: int, others: Sequence[float]
) -> bool:
    """Whether a transfer is hopeless beside others of its time (their bytes per second).

    It is given a quarter of the time that the others would take for all of it. Without others it is
    only measured against what no object store should fall to.
    """
    rate = received_bytes / max(elapsed_seconds, 1e-9)
    if not others:
        return elapsed_seconds >= LONE_PATIENCE_SECONDS and rate < LONE_BYTES_PER_SECOND
    typical = statistics.median(others)
    if rate * BEHIND_FACTOR >= typical:
        return False
    return elapsed_seconds >= max(PATIENCE_SECONDS, total_bytes / typical / 4)


class Transfer:
    """One answer on its way; whoever receives adds to `received_bytes`."""

    def __init__(
        self, connection: socket.socket, total_bytes: int, deadline: float, expendable: bool
    ) -> None:
        self.received_bytes = 0
        self.given_up = ""  # why, once the connection was shut
        self.total_bytes = total_bytes
        self.deadline = deadline
        self.expendable = expendable
        self.started = time.monotonic()
        self._connection = connection

    def rate(self, now: float) -> float:
        return self.received_bytes / max(now - self.started, 1e-9)

    def give_up(self, reason: str) -> None:
        """End the connection under its reader, who finds the end of the stream."""
        self.given_up = reason
        with suppress(OSError):
            # The plain socket's shutdown: TLS sockets drop their decryption in their own, and
            # ciphertext that is still queued would be read as data.
            socket.socket.shutdown(self._connection, socket.SHUT_RDWR)


class Watch:
    """Looks at every transfer of one endpoint while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._transfers: set[Transfer] = set()
        self._finished: deque[tuple[float, float]] = deque(maxlen=FINISHED_MAXIMUM)
        self._looking = False

    @contextmanager
    def watched(self, transfer: Transfer) -> Iterator[Transfer]:
        """After the block nobody shuts the connection any more, so that it may be used again."""
        with self._lock:
            self._transfers.add(transfer)
            if not self._looking:
                self._looking = True
                threading.Thread(target=self._look, name="s3-watch", daemon=True).start()
        try:
            yield transfer
        finally:
            now = time.monotonic()
            with self._lock:
                self._transfers.discard(transfer)
                if transfer.received_bytes == transfer.total_bytes:
                    self._finished.append((now, transfer.rate(now)))

    def _look(self) -> None:
        """Poll, for bytes that do not come cannot tell that they do not."""
        while True:
            time.sleep(LOOK_SECONDS)
            now = time.monotonic()
            with self._lock:
                if not self._transfers:
                    self._looking = False
                    return
                for transfer in self._transfers:
                    self._judge(transfer, now)

    def _judge(self, transfer: Transfer, now: float) -> None:
        if transfer.given_up:
            return
        if now > transfer.deadline:
            transfer.give_up("no end of the range in time")
            return
        others = [
            other.rate(now)
            for other in self._transfers
            if other is not transfer and now - other.started >= PATIENCE_SECONDS / 2
        ]
        others += [rate for ended, rate in self._finished if ended >= transfer.started]
        elapsed = now - transfer.started
        if transfer.expendable and falls_behind(
            elapsed, transfer.received_bytes, transfer.total_bytes, others
        ):
            transfer.give_up(f"{transfer.received_bytes} bytes in {elapsed:.1f} s")
