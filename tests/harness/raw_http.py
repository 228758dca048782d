"""HTTP by hand: bytes as they are, for requests that no client would send."""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass, field
from typing import Self


@dataclass
class Raw:
    """One connection. What comes back is kept in `received`."""

    port: int
    timeout_seconds: float = 10.0
    received: bytes = b""
    opened: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        self.opened = socket.create_connection(("127.0.0.1", self.port), self.timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.close()

    def send(self, data: bytes) -> Raw:
        """Send all of it, or as much as the other side still takes."""
        with contextlib.suppress(ConnectionError):
            self.opened.sendall(data)
        return self

    def received_now(self) -> bytes:
        """What has come so far."""
        self.opened.setblocking(False)
        with contextlib.suppress(BlockingIOError, ConnectionError):
            self.received += self.opened.recv(65536)
        return self.received

    def until_closed(self, seconds: float = 10.0) -> bytes:
        """Everything that comes before the other side closes; fails if it does not in time."""
        deadline = time.monotonic() + seconds
        while True:
            self.opened.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                part = self.opened.recv(65536)
            except ConnectionError:
                return self.received
            if not part:
                return self.received
            self.received += part

    def answer(self, seconds: float = 10.0) -> bytes:
        """What comes until a whole head and body without chunks are there."""
        self.opened.settimeout(seconds)
        while b"\r\n\r\n" not in self.received:
            part = self.opened.recv(65536)
            if not part:
                return self.received
            self.received += part
        return self.received

    @property
    def status(self) -> int:
        """Of the first answer; 0 if none came."""
        return int(self.received.split(b" ", 2)[1]) if self.received else 0

    @property
    def statuses(self) -> list[int]:
        """Of every answer on the connection."""
        lines = [line for line in self.received.split(b"\r\n") if b"HTTP/1.1 " in line]
        return [int(line.partition(b"HTTP/1.1 ")[2][:3]) for line in lines]


def said(port: int, data: bytes) -> Raw:
    """Send `data` on a connection of its own and read until it is closed."""
    with Raw(port) as connection:
        connection.send(data).until_closed()
        return connection
