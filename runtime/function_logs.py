"""What functions write, one JSON line per line of theirs, kept after the instance's death.

`<directory>/<name.namespace>.ndjson` and one older file (`.1`) hold objects with `name`,
`namespace`, `instance`, `timestamp` (RFC 3339, UTC, microseconds) and `text`.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import orjson

from stoker.placement.errors import BadRequest
from stoker.placement.names import split_function_name

LINE_BYTES_MAXIMUM = 8 * 1024
FILE_BYTES_MAXIMUM = 8 << 20
FOLLOWER_LINES_MAXIMUM = 1000
TAIL_MAXIMUM = 100_000
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class LogQuery:
    """The last `tail` lines (None: all) of `key`, not older than `since`, of one instance."""

    key: str
    tail: int | None = None
    since: datetime | None = None
    instance: str | None = None

    def __post_init__(self) -> None:
        if ".".join(split_function_name(self.key)) != self.key:
            raise BadRequest(f"Expected a function as name.namespace, found {self.key!r:.80}.")
        if self.tail is not None and not 0 <= self.tail <= TAIL_MAXIMUM:
            raise BadRequest(f"Expected a tail from 0 to {TAIL_MAXIMUM}, found {self.tail}.")

    def admits(self, line: bytes) -> bool:
        try:
            fields = orjson.loads(line)
        except orjson.JSONDecodeError:  # the torn last line of a crash
            return False
        if self.instance is not None and fields["instance"] != self.instance:
            return False
        return self.since is None or fields["timestamp"] >= timestamp_of(self.since)


class Follower:
    """New lines for one reader; a slow reader loses the oldest and is told how many."""

    def __init__(self, query: LogQuery) -> None:
        self._query = query
        self._lines: deque[bytes] = deque()
        self._lost = 0
        self._arrived = asyncio.Event()

    def offer(self, lines: Iterable[bytes]) -> None:
        self._lines.extend(line for line in lines if self._query.admits(line))
        while len(self._lines) > FOLLOWER_LINES_MAXIMUM:
            self._lines.popleft()
            self._lost += 1
        self._arrived.set()

    async def read(self, timeout_seconds: float) -> list[bytes]:
        """The lines that came since the last call; waits for one, [] when none came in time."""
        try:
            await asyncio.wait_for(self._arrived.wait(), timeout_seconds)
        except TimeoutError:
            return []
        self._arrived.clear()
        lines = list(self._lines)
        self._lines.clear()
        if self._lost:
            text = f"{self._lost} lines were dropped, because the reader was too slow."
            lines.insert(0, _line(self._query.key, "", datetime.now(UTC), text))
            self._lost = 0
        return lines


class FunctionLogs:
    """The logs of every function on this node. One event loop owns it.

    Appends are short buffered writes to the page cache; reading happens in the caller's thread
    on files that were opened in the loop, so that no line is missed or seen twice.
    """

    def __init__(self, directory: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)):
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        self._now = now
        self._followers: dict[str, set[Follower]] = {}

    def append(self, key: str, instance: str, texts: Iterable[str]) -> None:
        """Add lines; control characters are escaped and long lines are split."""
        LogQuery(key)
        moment = self._now()
        lines = [_line(key, instance, moment, part) for text in texts for part in _parts(text)]
        if not lines:
            return
        path = self._path(key)
        if path.exists() and path.stat().st_size > FILE_BYTES_MAXIMUM:
            path.rename(path.with_suffix(".ndjson.1"))
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with open(descriptor, "ab") as file:
            file.writelines(lines)
        for follower in self._followers.get(key, ()):
            follower.offer(lines)

    def open(self, query: LogQuery) -> LogReading:
        """What is written now; call its `lines` in a thread."""
        current = self._path(query.key)
        files: list[tuple[IO[bytes], int]] = []
        for path in (current.with_suffix(".ndjson.1"), current):
            if path.exists():
                file = open(path, "rb")  # noqa: SIM115 - LogReading.lines closes it
                files.append((file, os.fstat(file.fileno()).st_size))
        return LogReading(query, files)

    def functions(self) -> set[str]:
        """The keys of those of which there are logs."""
        return {path.name.partition(".ndjson")[0] for path in self._directory.iterdir()}

    def remove(self, key: str) -> None:
        """Forget what the function wrote."""
        current = self._path(key)
        for path in (current, current.with_suffix(".ndjson.1")):
            path.unlink(missing_ok=True)

    def follow(self, query: LogQuery) -> Follower:
        """A follower of new lines; give it back with `unfollow`."""
        follower = Follower(query)
        self._followers.setdefault(query.key, set()).add(follower)
        return follower

    def unfollow(self, query: LogQuery, follower: Follower) -> None:
        followers = self._followers.get(query.key, set())
        followers.discard(follower)
        if not followers:
            self._followers.pop(query.key, None)

    def _path(self, key: str) -> Path:
        return self._directory / f"{key}.ndjson"


@dataclass(frozen=True, slots=True)
class LogReading:
    """Open files and how far to read each."""

    query: LogQuery
    files: list[tuple[IO[bytes], int]]

    def lines(self) -> list[bytes]:
        """The lines that the query admits, oldest first; blocking."""
        admitted = (line for line in self._all() if self.query.admits(line))
        return list(deque(admitted, self.query.tail))

    def _all(self) -> Iterator[bytes]:
        for file, byte_count in self.files:
            with file:
                for line in file:
                    byte_count -= len(line)
                    if byte_count < 0:
                        break
                    yield line


class LineSplitter:
    """Bytes of a pipe to texts; a line without end is cut at 8 KiB."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_BYTES_MAXIMUM:
            lines.append(self._rest)
            self._rest = b""
        return [_decoded(line) for line in lines]

    def end(self) -> list[str]:
        rest, self._rest = self._rest, b""
        return [_decoded(rest)] if rest else []


def timestamp_of(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds: texts that sort as the moments do."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _decoded(line: bytes) -> str:
    return line.removesuffix(b"\r").decode("utf-8", "backslashreplace")


def _parts(text: str) -> Iterator[str]:
    # A control character could move the cursor of whoever reads the log in a terminal.
    safe = _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
    encoded = safe.encode()
    if len(encoded) <= LINE_BYTES_MAXIMUM:
        yield safe
        return
    for begin in range(0, len(encoded), LINE_BYTES_MAXIMUM):
        yield encoded[begin : begin + LINE_BYTES_MAXIMUM].decode("utf-8", "replace")


def _line(key: str, instance: str, moment: datetime, text: str) -> bytes:
    name, _, namespace = key.rpartition(".")
    fields = {
        "name": name,
        "namespace": namespace,
        "instance": instance,
        "timestamp": timestamp_of(moment),
        "text": text,
    }
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)
