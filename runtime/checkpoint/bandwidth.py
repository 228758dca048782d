"""How fast a tier is, learnt from every load."""

from __future__ import annotations

import threading

ASSUMED_REMOTE_BYTES_PER_SECOND = 1e9  # until the first load has been measured
ASSUMED_SSD_BYTES_PER_SECOND = 2e9
START_SECONDS = 0.02  # from a template until the first layer is needed
_WEIGHT_OF_NEWEST = 0.3


class Bandwidth:
    """Exponentially weighted mean of measured rates, in bytes per second; 0 until known."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes_per_second = 0.0

    @property
    def bytes_per_second(self) -> float:
        return self._bytes_per_second

    def record(self, byte_count: int, seconds: float) -> None:
        if byte_count <= 0 or seconds <= 0:
            return
        rate = byte_count / seconds
        with self._lock:
            before = self._bytes_per_second or rate
            self._bytes_per_second = before + _WEIGHT_OF_NEWEST * (rate - before)


class Bandwidths:
    """Those of one node: from afar, from its own disk, and from its peers."""

    def __init__(self) -> None:
        self.remote, self.ssd, self.peer = Bandwidth(), Bandwidth(), Bandwidth()

    def fetch_seconds(self, byte_count: int) -> float:
        return byte_count / (self.remote.bytes_per_second or ASSUMED_REMOTE_BYTES_PER_SECOND)

    def load_seconds(self, byte_count: int) -> float:
        return byte_count / (self.ssd.bytes_per_second or ASSUMED_SSD_BYTES_PER_SECOND)

    def hidden_bytes(self) -> int:
        """What is read while a process starts: B (T_rt + P (L - 1) / L), with P not known here."""
        return int(self.ssd.bytes_per_second * START_SECONDS)
