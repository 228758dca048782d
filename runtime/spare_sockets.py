"""Listening sockets opened ahead of need, so that an address can be given before its instance."""

from __future__ import annotations

import socket

from stoker.placement.errors import StartFailed

BACKLOG = 512


class SpareSockets:
    """Sockets that listen on `host` and belong to no instance yet.

    A client that connects waits in the backlog until a worker accepts. Closing the last copy of
    a socket resets whoever waits there.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._sockets: dict[str, socket.socket] = {}

    @property
    def addresses(self) -> tuple[str, ...]:
        """`host:port` of each, oldest first."""
        return tuple(self._sockets)

    def fill(self, count: int) -> None:
        """Open sockets until there are `count`; what was announced is never closed here."""
        while len(self._sockets) < count:
            listening = listen(self._host, 0)
            self._sockets[address_of(listening)] = listening

    def claim(self, address: str) -> socket.socket | None:
        """The socket at `address`, which is the caller's from now on; None if not held."""
        return self._sockets.pop(address, None)

    def close(self) -> None:
        while self._sockets:
            self._sockets.popitem()[1].close()


def listen(host: str, port: int) -> socket.socket:
    """A socket listening at `host:port` (0: any free port); StartFailed when it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        if port:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise StartFailed(
            f"Expected to listen at {host}:{port}, found: {error.strerror}.",
            "Choose an address of this machine and a free port.",
        ) from error
    return listening


def address_of(listening: socket.socket) -> str:
    """`host:port` of a bound socket, an IPv6 host in brackets."""
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
