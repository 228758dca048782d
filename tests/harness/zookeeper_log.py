"""What ZooKeeper itself wrote down: every write that it committed, in order, as Stoker's entries.

Read from the servers' transaction logs, whose records are ZooKeeper's (jute): nothing that happened
between two looks of a test is missed, and no client is taken at its word.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stoker.placement.zookeeper_watch import of_znode

_MAGIC = 0x5A4B4C47
_CLOSE, _ERROR, _CREATE, _DELETE, _SET, _CHECK, _MULTI = -11, -1, 1, 2, 5, 13, 14
_CREATES = (_CREATE, 15)
_END_OF_RECORD = 0x42


@dataclass(frozen=True)
class Write:
    """One committed write: `value` is None for a deletion.

    `version` is that of a written entry, 0 if it was created. `fence` is the entry that was checked
    in the same transaction, and the version that it had to have. `owner` is the session of an
    ephemeral entry.
    """

    zxid: int
    at: float
    session: int
    path: str
    value: bytes | None
    version: int = 0
    created: bool = False
    owner: int = 0
    fence: tuple[str, int] | None = None


@dataclass(frozen=True)
class SessionEnd:
    zxid: int
    at: float
    session: int


Event = Write | SessionEnd


def committed(folders: list[Path], chroot: str) -> list[Event]:
    """The events that most of the servers with these data folders wrote down."""
    seen: Counter[int] = Counter()
    events: dict[int, list[Event]] = {}
    for folder in folders:
        zxids = set()
        for file in sorted((folder / "version-2").glob("log.*")):
            for zxid, found in _read(file.read_bytes(), chroot):
                zxids.add(zxid)
                events[zxid] = found
        seen.update(zxids)
    most = len(folders) // 2 + 1
    return [event for zxid in sorted(events) if seen[zxid] >= most for event in events[zxid]]


class _Jute:
    def __init__(self, data: bytes, offset: int = 0) -> None:
        self.data, self.offset = data, offset

    def take(self, form: str) -> tuple[int, ...]:
        taken: tuple[int, ...] = struct.unpack_from(">" + form, self.data, self.offset)
        self.offset += struct.calcsize(">" + form)
        return taken

    def buffer(self) -> bytes:
        (size,) = self.take("i")
        taken = self.data[self.offset : self.offset + max(size, 0)]
        self.offset += max(size, 0)
        return taken

    def text(self) -> str:
        return self.buffer().decode()


def _read(data: bytes, chroot: str) -> Iterator[tuple[int, list[Event]]]:
    log = _Jute(data)
    if len(data) < 16 or log.take("iiq")[0] != _MAGIC:
        return
    while log.offset + 12 <= len(data):
        _, size = log.take("qi")
        whole = log.offset + size < len(data)
        # What follows the last record is preallocated, or was being written at the kill.
        if size <= 0 or not whole or data[log.offset + size] != _END_OF_RECORD:
            return
        record = _Jute(data[log.offset : log.offset + size])
        log.offset += size + 1
        session, _, zxid, milliseconds, kind = record.take("qiqqi")
        yield zxid, list(_events(record, zxid, milliseconds / 1000, session, kind, chroot))


def _events(
    record: _Jute, zxid: int, at: float, session: int, kind: int, chroot: str
) -> Iterator[Event]:
    if kind == _CLOSE:
        yield SessionEnd(zxid, at, session)
        return
    parts = [(kind, record)]
    if kind == _MULTI:
        (count,) = record.take("i")
        parts = [(record.take("i")[0], _Jute(record.buffer())) for _ in range(count)]
    fence: tuple[str, int] | None = None
    for part, body in parts:
        if part == _ERROR or part not in (*_CREATES, _DELETE, _SET, _CHECK):
            continue
        znode = body.text()
        if not znode.startswith(chroot + "/"):
            continue
        path = of_znode(znode.removeprefix(chroot))
        if part == _CHECK:
            # ZooKeeper notes the version that a write would have made.
            fence = (path, body.take("i")[0] - 1)
        elif path.endswith("/"):
            continue  # a folder
        elif part == _DELETE:
            yield Write(zxid, at, session, path, None, fence=fence)
        elif part == _SET:
            value = body.buffer()
            yield Write(zxid, at, session, path, value, body.take("i")[0], fence=fence)
        else:
            value = body.buffer()
            for _ in range(body.take("i")[0]):
                body.take("i")
                body.text()
                body.text()
            (ephemeral,) = body.take("b")
            owner = session if ephemeral else 0
            yield Write(zxid, at, session, path, value, 0, created=True, owner=owner, fence=fence)
