"""The SQL of the SQLite store: each method is one short transaction on one connection."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from stoker.placement.errors import CoordinationLost
from stoker.placement.store import Entry, Fence
from stoker.placement.store_rules import check_fence, next_version, version_conflict

SCHEMA_VERSION = 1
BUSY_SECONDS_MAX = 5.0
# Each PRUNE_EVERY revisions, tombstones older than TOMBSTONES_KEPT revisions are removed.
TOMBSTONES_KEPT = 10_000
PRUNE_EVERY = 1_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    path TEXT PRIMARY KEY, value BLOB, version INTEGER NOT NULL, owner TEXT,
    revision INTEGER NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS entries_by_revision ON entries (revision);
CREATE INDEX IF NOT EXISTS entries_by_owner ON entries (owner) WHERE owner IS NOT NULL;
CREATE TABLE IF NOT EXISTS sessions (id TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT OR IGNORE INTO meta VALUES ('schema', 1), ('revision', 0), ('pruned', 0);
"""
_REMEDIES = {
    sqlite3.SQLITE_FULL: "Free space on the file system of the store.",
    sqlite3.SQLITE_BUSY: "See which process holds the file: one of them is stopped or very slow.",
    sqlite3.SQLITE_CORRUPT: "Stop Stoker, move the file away, start again and deploy anew.",
    sqlite3.SQLITE_NOTADB: "Stop Stoker, move the file away, start again and deploy anew.",
    sqlite3.SQLITE_READONLY: "Give this user the right to write the file and its folder.",
    sqlite3.SQLITE_CANTOPEN: "Give this user the right to write the file and its folder.",
}


@contextlib.contextmanager
def transaction(db: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    """All of it or nothing; what sqlite3 raises goes on."""
    db.execute(f"BEGIN {kind}")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        # SQLite may have rolled back by itself, as it does when the disk is full.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def translated(path: Path, verb: str) -> Iterator[None]:
    """Turn what sqlite3 and the system raise into CoordinationLost."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        # The low byte of an extended code is the primary one.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        remedy = _REMEDIES.get(code, "See whether its disk is healthy and has space.")
        raise CoordinationLost(
            f"Expected to {verb} the store {path}, found: {error}.", remedy
        ) from error


def check_file(path: Path) -> None:
    """Read the whole database and write nothing; CoordinationLost if it is damaged.

    Only for a process that has no connection to it: closing this one drops the others' locks.
    """
    with translated(path, "check"):
        # A plain reader makes the journal files that a closed database lacks, and leaves them.
        in_use = path.with_name(f"{path.name}-wal").exists()
        uri = f"{path.absolute().as_uri()}?mode=ro" + ("" if in_use else "&immutable=1")
        with contextlib.closing(sqlite3.connect(uri, timeout=BUSY_SECONDS_MAX, uri=True)) as file:
            found = str(file.execute("PRAGMA quick_check(1)").fetchone()[0])
            tables = {row[0] for row in file.execute("SELECT name FROM sqlite_schema")}
    if found != "ok" or not {"entries", "sessions", "meta"} <= tables:
        reason = found if found != "ok" else "tables of something else"
        raise CoordinationLost(
            f"Expected a sound store in {path}, found: {reason:.200}.",
            _REMEDIES[sqlite3.SQLITE_CORRUPT],
        )


class Connection:
    """One connection; used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with translated(path, "open"):
            create_private(path)
        with opening(path), translated(path, "open"):
            self._db = sqlite3.connect(
                path, timeout=BUSY_SECONDS_MAX, isolation_level=None, check_same_thread=False
            )
            try:
                self._set_up()
            except BaseException:
                self._db.close()
                raise

    def _set_up(self) -> None:
        with translated(self._path, "open"):
            self._db.execute("PRAGMA journal_mode=WAL").fetchone()
            self._db.execute("PRAGMA synchronous=FULL").fetchone()
        with self._transaction("open"):
            for statement in _SCHEMA.split(";"):
                self._db.execute(statement)
        schema = self._meta("schema")
        if schema != SCHEMA_VERSION:
            raise CoordinationLost(
                f"Expected schema {SCHEMA_VERSION} in the store {self._path}, found {schema}.",
                "Run the release of Stoker that wrote it, or move the file away.",
            )

    def get(self, path: str) -> Entry | None:
        with translated(self._path, "read"):
            row = self._db.execute(
                "SELECT value, version FROM entries WHERE path = ? AND value IS NOT NULL", (path,)
            ).fetchone()
        return Entry(path, row[0], row[1]) if row else None

    def below(self, prefix: str) -> list[tuple[Entry, int]]:
        """Entries whose path starts with `prefix` (which ends in /), by path, with revisions."""
        # "0" is the character after "/".
        with translated(self._path, "read"):
            rows = self._db.execute(
                "SELECT path, value, version, revision FROM entries"
                " WHERE path > ? AND path < ? AND value IS NOT NULL ORDER BY path",
                (prefix, prefix[:-1] + "0"),
            ).fetchall()
        return [(Entry(path, value, version), stamp) for path, value, version, stamp in rows]

    def revisions(self) -> tuple[int, int]:
        """The last revision, and that up to which tombstones were pruned."""
        return self._meta("revision"), self._meta("pruned")

    def news(self, seen: int) -> tuple[int, int, list[tuple[str, Entry | None, int]]]:
        """The last revision, the pruned one, and (path, entry or None, revision) after `seen`."""
        with self._transaction("read", "DEFERRED"):
            revision, pruned = self.revisions()
            rows = self._db.execute(
                "SELECT path, value, version, revision FROM entries WHERE revision > ?"
                " ORDER BY revision",
                (seen,),
            ).fetchall()
        return (
            revision,
            pruned,
            [
                (path, None if value is None else Entry(path, value, version), stamp)
                for path, value, version, stamp in rows
            ],
        )

    def data_version(self) -> int:
        """A number that differs when another connection has written."""
        with translated(self._path, "read"):
            return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def put(
        self, path: str, value: bytes, expected: int | None, owner: str | None, fence: Fence | None
    ) -> int:
        with self._transaction("write"):
            self._check_fence(fence)
            if owner is not None and not self.has_session(owner):
                raise CoordinationLost(
                    f"Expected session {owner} in the store {self._path}, found it ended.",
                    "Write again: the store opens a new session by itself.",
                )
            version = next_version(path, self._found(path), expected, owner)
            self._write(path, bytes(value), version, owner)
        return version

    def delete(self, path: str, expected: int | None, fence: Fence | None) -> bool:
        with self._transaction("write"):
            self._check_fence(fence)
            found = self._found(path)
            if found is None:
                return False
            if expected not in (None, found[0]):
                raise version_conflict(path, expected or 0, found[0])
            self._write(path, None, found[0], None)
        return True

    def has_session(self, session_id: str) -> bool:
        with translated(self._path, "read"):
            query = "SELECT 1 FROM sessions WHERE id = ?"
            return self._db.execute(query, (session_id,)).fetchone() is not None

    def begin_session(self, session_id: str) -> list[str]:
        """Add the session; return the others."""
        with self._transaction("write"):
            rows = self._db.execute("SELECT id FROM sessions").fetchall()
            self._db.execute("INSERT INTO sessions VALUES (?)", (session_id,))
        return [row[0] for row in rows]

    def end_session(self, session_id: str) -> None:
        """Remove the session and its ephemeral entries."""
        with self._transaction("write"):
            rows = self._db.execute(
                "SELECT path, version FROM entries WHERE owner = ? ORDER BY path", (session_id,)
            ).fetchall()
            for path, version in rows:
                self._write(path, None, version, None)
            self._db.execute("DELETE FROM sessions WHERE id = ?", (session_id,))

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._db.close()

    @contextlib.contextmanager
    def _transaction(self, verb: str, kind: str = "IMMEDIATE") -> Iterator[None]:
        with translated(self._path, verb), transaction(self._db, kind):
            yield

    def _meta(self, name: str) -> int:
        with translated(self._path, "read"):
            query = "SELECT value FROM meta WHERE name = ?"
            return int(self._db.execute(query, (name,)).fetchone()[0])

    def _found(self, path: str) -> tuple[int, str | None] | None:
        query = "SELECT version, owner FROM entries WHERE path = ? AND value IS NOT NULL"
        row: tuple[int, str | None] | None = self._db.execute(query, (path,)).fetchone()
        return row

    def _check_fence(self, fence: Fence | None) -> None:
        if fence is not None:
            found = self._found(fence.path)
            check_fence(fence, found[0] if found else None)

    def _write(self, path: str, value: bytes | None, version: int, owner: str | None) -> None:
        query = "UPDATE meta SET value = value + 1 WHERE name = 'revision' RETURNING value"
        revision = int(self._db.execute(query).fetchall()[0][0])
        self._db.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?) ON CONFLICT (path) DO UPDATE SET"
            " value = excluded.value, version = excluded.version, owner = excluded.owner,"
            " revision = excluded.revision",
            (path, value, version, owner, revision),
        )
        if revision % PRUNE_EVERY == 0 and revision > TOMBSTONES_KEPT:
            self._prune(revision - TOMBSTONES_KEPT)

    def _prune(self, revision: int) -> None:
        self._db.execute("DELETE FROM entries WHERE value IS NULL AND revision <= ?", (revision,))
        self._db.execute("UPDATE meta SET value = ? WHERE name = 'pruned'", (revision,))


def create_private(path: Path) -> None:
    """Make the file of a database, and its folder, for this user alone; OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Never open a database that is there: closing any descriptor of a file drops every lock that
    # this process holds on it, those of other connections too. SQLite gives its journal files
    # the mode of the database.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)


@contextlib.contextmanager
def opening(path: Path) -> Iterator[None]:
    """One process at a time: of two that turn a new file to WAL, one finds it locked at once."""
    with translated(path, "open"):
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        lock = os.open(path.with_name(path.name + ".lock"), flags, 0o600)
    try:
        deadline = time.monotonic() + BUSY_SECONDS_MAX
        while not _locked(lock):
            if time.monotonic() > deadline:
                raise CoordinationLost(
                    f"Expected to open the store {path} within {BUSY_SECONDS_MAX:g} s, found "
                    "another process opening it.",
                    _REMEDIES[sqlite3.SQLITE_BUSY],
                )
            # Waiting for this lock in the kernel would have no deadline.
            time.sleep(0.005)
        yield
    finally:
        os.close(lock)


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
