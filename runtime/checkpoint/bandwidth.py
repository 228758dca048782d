"""How fast a tier is, learnt from every load."""

from __future__ import annotations

import threading

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
