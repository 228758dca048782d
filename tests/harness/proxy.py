"""A TCP proxy on the loopback interface that a test can cut."""

from __future__ import annotations

import contextlib
import socket
import threading


class Proxy:
    """Forwards connections to `host:port` until `cut`, and again after `restore`."""

    def __init__(self, target: str, near: str = "127.0.0.1") -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server((near, 0))
        self._lock = threading.Lock()
        self._open = True
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def hosts(self) -> str:
        return "{}:{}".format(*self._listener.getsockname())

    def cut(self) -> None:
        with self._lock:
            self._open = False
            for end in self._ends:
                # What another thread reads from is not closed under it, only ended.
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            self._ends.clear()

    def restore(self) -> None:
        with self._lock:
            self._open = True

    def close(self) -> None:
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                with self._lock:
                    far = self._reach() if self._open else None
                    if far is None:
                        near.close()
                        continue
                    self._ends += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=_pump, args=(source, sink), daemon=True).start()

    def _reach(self) -> socket.socket | None:
        try:
            return socket.create_connection(self._target)
        except OSError:
            return None


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while received := source.recv(65536):
            sink.sendall(received)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    source.close()
