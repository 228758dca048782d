"""A TCP proxy that passes answers at a fixed rate, all connections together."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import TracebackType
from typing import Self

PIECE_BYTES = 1 << 18
BURST_SECONDS = 0.005


class Bucket:
    """`take(n)` returns when n more bytes are within the rate."""

    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = 0.0

    def take(self, byte_count: int) -> None:
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - BURST_SECONDS) + byte_count / self._rate
            wait_seconds = self._free_at - now
        if wait_seconds > 0:
            time.sleep(wait_seconds)


class ThrottledProxy:
    """`with ThrottledProxy(port, rate) as proxy:` listens on 127.0.0.1:`proxy.port`."""

    def __init__(self, target_port: int, bytes_per_second: float) -> None:
        self._target = ("127.0.0.1", target_port)
        self._bucket = Bucket(bytes_per_second)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                for source, sink, bucket in ((near, far, None), (far, near, self._bucket)):
                    threading.Thread(target=_pump, args=(source, sink, bucket), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket, bucket: Bucket | None) -> None:
    piece = memoryview(bytearray(PIECE_BYTES))
    with contextlib.suppress(OSError):
        while count := source.recv_into(piece):
            if bucket is not None:
                bucket.take(count)
            sink.sendall(piece[:count])
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
