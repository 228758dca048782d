"""The sessions that share one SQLite store: who is alive, and a nudge when something was written.

Each session listens on the unix socket `sessions/<id>.sock` beside the store and is connected to
every other one: a new session connects to all that were there before it and sends its id. One byte
on a connection means "look into the store"; its end means that the other process is gone, however
it went, for the kernel closes it.

    process A  <--- one stream per pair --->  process B
               nudge: 1 byte each way;  end of stream: dead
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import stat
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path

from stoker.placement.errors import CoordinationLost

ID_BYTES = 16
LISTEN_BACKLOG = 1024
_NUDGE = b"\0"


@dataclass(slots=True)
class _Peer:
    connection: socket.socket
    hello: bytes = b""

    @property
    def session_id(self) -> str | None:
        return self.hello.hex() if len(self.hello) == ID_BYTES else None


class Sessions:
    """The mesh of one session. `wait` belongs to one thread; `nudge` and `wake` to any."""

    def __init__(self, folder: Path) -> None:
        self.session_id = os.urandom(ID_BYTES).hex()
        try:
            self._folder_fd = _open_private_folder(folder)
            self._listener = self._listen()
        except OSError as error:
            raise CoordinationLost(
                f"Expected to listen on a socket in {folder}, found: {error.strerror}.",
                "Give the store a folder on a local file system that this user owns.",
            ) from error
        # Guards the peers, which `nudge` walks while `wait` changes them.
        self._lock = threading.Lock()
        self._peers: dict[socket.socket, _Peer] = {}
        self._selector = selectors.DefaultSelector()
        self._wake_out, self._wake_in = socket.socketpair()
        for end in (self._wake_out, self._wake_in, self._listener):
            end.setblocking(False)
        self._selector.register(self._wake_in, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        _open_sessions.add(self)

    def connect(self, session_id: str) -> bool:
        """Connect to another session; False if its process is gone."""
        connection = self._dial(session_id)
        if connection is None:
            return False
        try:
            connection.sendall(bytes.fromhex(self.session_id))
        except OSError:
            connection.close()
            return False
        connection.setblocking(False)
        self._add(_Peer(connection, bytes.fromhex(session_id)))
        return True

    def answers(self, session_id: str) -> bool:
        connection = self._dial(session_id)
        if connection is not None:
            connection.close()
        return connection is not None

    def wait(self, timeout_seconds: float) -> set[str]:
        """Wait for a nudge, an arrival, a death or `wake`; return the sessions that ended.

        Who ended before it said its id was only asking whether we live.
        """
        ended: set[str] = set()
        for key, _ in self._selector.select(timeout_seconds):
            end = key.fileobj
            if end is self._listener:
                self._accept()
            elif end is self._wake_in:
                _drain(self._wake_in)
            elif isinstance(end, socket.socket):
                peer = self._peers[end]
                if not self._read(peer):
                    self._drop(peer)
                    if peer.session_id:
                        ended.add(peer.session_id)
        return ended

    def nudge(self) -> None:
        """Tell every other session, and our own thread, to look into the store."""
        with self._lock:
            for peer in self._peers.values():
                _send_nudge(peer.connection)
        self.wake()

    def wake(self) -> None:
        _send_nudge(self._wake_out)

    def forget(self, session_id: str) -> None:
        """Remove the socket that a dead session left."""
        with contextlib.suppress(OSError):
            os.unlink(f"{session_id}.sock", dir_fd=self._folder_fd)

    def leftovers(self, known: set[str]) -> list[str]:
        """Dead sessions that left a socket but are not `known` to the store."""
        names = [entry.name for entry in os.scandir(self._folder_fd)]
        stems = {name.removesuffix(".sock") for name in names if name.endswith(".sock")}
        return [session_id for session_id in stems - known if not self.answers(session_id)]

    def close(self) -> None:
        _open_sessions.discard(self)
        self.forget(self.session_id)
        self._selector.close()
        with self._lock:
            self.close_sockets()
            self._peers.clear()
        os.close(self._folder_fd)

    def close_sockets(self) -> None:
        for end in (*self._peers, self._listener, self._wake_out, self._wake_in):
            end.close()

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Named through the folder's descriptor, since a socket's path has at most 107 bytes. It
        # gets its name when it listens: what refuses a connection is dead, not young.
        listener.bind(self._address(f"{self.session_id}.new"))
        listener.listen(LISTEN_BACKLOG)
        os.rename(
            f"{self.session_id}.new",
            f"{self.session_id}.sock",
            src_dir_fd=self._folder_fd,
            dst_dir_fd=self._folder_fd,
        )
        return listener

    def _address(self, name: str) -> str:
        return f"/proc/self/fd/{self._folder_fd}/{name}"

    def _dial(self, session_id: str) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(1.0)
            connection.connect(self._address(f"{session_id}.sock"))
        except (ConnectionRefusedError, FileNotFoundError):
            connection.close()
            return None
        except OSError as error:
            connection.close()
            raise CoordinationLost(
                f"Expected to reach session {session_id} of the store, found: {error}.",
                "See whether one of the machine's Stoker processes is stopped.",
            ) from error
        return connection

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:
            # Out of descriptors: nothing tells when one is free again.
            time.sleep(0.05)
            return
        connection.setblocking(False)
        self._add(_Peer(connection))
        # What was written before it could be nudged would else go unseen by it.
        _send_nudge(connection)

    def _add(self, peer: _Peer) -> None:
        with self._lock:
            self._peers[peer.connection] = peer
        self._selector.register(peer.connection, selectors.EVENT_READ)

    def _drop(self, peer: _Peer) -> None:
        self._selector.unregister(peer.connection)
        with self._lock:
            del self._peers[peer.connection]
        peer.connection.close()

    def _read(self, peer: _Peer) -> bool:
        """Read a peer's id and nudges; False at the end of the stream."""
        try:
            received = peer.connection.recv(4096)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if len(peer.hello) < ID_BYTES:
            peer.hello += received[: ID_BYTES - len(peer.hello)]
        return bool(received)


def _open_private_folder(folder: Path) -> int:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) != 0o700:
        os.close(descriptor)
        raise CoordinationLost(
            f"Expected {folder} to belong to user {os.geteuid()} with mode 0700, found user "
            f"{status.st_uid} and mode {stat.S_IMODE(status.st_mode):04o}.",
            "Correct its owner and mode, or choose another folder for the store.",
        )
    return descriptor


def _send_nudge(connection: socket.socket) -> None:
    # A full buffer already holds nudges, and a broken connection is seen by `wait`.
    with contextlib.suppress(OSError):
        connection.send(_NUDGE, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _drain(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.recv(4096)


_open_sessions: weakref.WeakSet[Sessions] = weakref.WeakSet()


def _close_in_child() -> None:
    # A forked child must not keep its parent's connections open: nobody would see the parent die.
    for sessions in list(_open_sessions):
        sessions.close_sockets()
    _open_sessions.clear()


os.register_at_fork(after_in_child=_close_in_child)
