"""The Store in one SQLite file that several processes of one machine share.

    entries    path, value (NULL: deleted, kept as a tombstone), version, owner, revision
    sessions   the open stores; the owner of an ephemeral entry is one of them
    meta       revision: grows by one with each write of any entry; pruned: tombstones up to this
               revision were removed, so who has seen less must read everything again

Writers commit, then nudge the other sessions (sqlite_sessions), which read what has a greater
revision than they have seen. One thread per store does that, calls the watchers, and deletes the
entries of sessions that died. Callbacks may call the store.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog

from stoker.placement.errors import CoordinationLost, StokerError
from stoker.placement.serial import ask
from stoker.placement.sqlite_file import Connection
from stoker.placement.sqlite_sessions import Sessions
from stoker.placement.store import Change, Entry, Fence, StoreState
from stoker.placement.store_rules import (
    CALL_SECONDS_MAX,
    StateListeners,
    Watcher,
    check_fence_form,
    check_path,
    check_prefix,
    check_put,
    check_version,
    closed_error,
)

# A writer may die between its commit and its nudge: look at the file this often in any case.
LOOK_SECONDS = 1.0

_log = structlog.get_logger()


class SqliteStore:
    """`path` is the database file; its folder gets `sessions/`. Both are made as needed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sessions_folder = path.parent / "sessions"
        self._lock = threading.Lock()  # guards _calls, the callers' connection
        self._calls = Connection(path)
        self._closed = False
        # What follows belongs to the thread, once it runs.
        self._file = Connection(path)
        self._watchers: list[Watcher] = []
        self._listeners = StateListeners()
        self._seen = 0
        self._data_version = -1
        self._ended: set[str] = set()
        self._requests: deque[Callable[[], object]] = deque()
        try:
            self._sessions = self._join()
            self._seen = self._file.revisions()[0]
        except StokerError:
            self._file.close()
            self._calls.close()
            raise
        self._thread = threading.Thread(target=self._run, name="stoker-store", daemon=True)
        self._thread.start()

    def get(self, path: str) -> Entry | None:
        check_path(path)
        with self._call() as connection:
            return connection.get(path)

    def list(self, prefix: str) -> tuple[Entry, ...]:
        prefix = check_prefix(prefix)
        with self._call() as connection:
            return tuple(entry for entry, _ in connection.below(prefix))

    def put(
        self,
        path: str,
        value: bytes,
        *,
        version: int | None = None,
        ephemeral: bool = False,
        fence: Fence | None = None,
    ) -> int:
        check_put(path, value, version, fence)
        with self._call() as connection:
            owner = self._sessions.session_id if ephemeral else None
            new_version = connection.put(path, value, version, owner, fence)
        self._sessions.nudge()
        return new_version

    def delete(self, path: str, *, version: int | None = None, fence: Fence | None = None) -> bool:
        check_path(path)
        check_version(version, 0)
        check_fence_form(fence)
        with self._call() as connection:
            deleted = connection.delete(path, version, fence)
        if deleted:
            self._sessions.nudge()
        return deleted

    def watch(self, prefix: str, on_change: Callable[[Change], None]) -> Callable[[], None]:
        watcher = Watcher(prefix, on_change)

        def begin() -> None:
            self._tell_all(watcher)
            self._watchers.append(watcher)

        self._ask(begin)
        return watcher.stop

    def on_state(self, on_state: Callable[[StoreState], None]) -> None:
        self._ask(lambda: self._listeners.add(on_state))

    def close(self) -> None:
        """End the session; from inside a callback, the thread ends after it."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            with contextlib.suppress(StokerError):  # whoever sees our end does it for us
                self._calls.end_session(self._sessions.session_id)
            self._calls.close()
            for watcher in tuple(self._watchers):
                watcher.stop()
            self._listeners.clear()
        self._sessions.nudge()
        if threading.current_thread() is not self._thread:
            self._thread.join(CALL_SECONDS_MAX)

    @contextlib.contextmanager
    def _call(self) -> Iterator[Connection]:
        """The callers' connection, for one caller at a time."""
        if not self._lock.acquire(timeout=CALL_SECONDS_MAX):
            raise CoordinationLost(
                f"Expected the store {self._path} to be free within {CALL_SECONDS_MAX:g} s, "
                "found it busy.",
                "See whether the disk under it still answers.",
            )
        try:
            if self._closed:
                raise closed_error()
            yield self._calls
        finally:
            self._lock.release()

    def _ask(self, request: Callable[[], None]) -> None:
        """Run `request` in the thread and wait for it; raise what it raises."""
        if self._closed:
            raise closed_error()
        if threading.current_thread() is self._thread:
            request()
            return

        def submit(run: Callable[[], object]) -> None:
            self._requests.append(run)
            self._sessions.wake()

        def run_while_open() -> None:
            if self._closed:
                raise closed_error()
            request()

        ask(submit, run_while_open, CALL_SECONDS_MAX, self._thread.name)

    def _run(self) -> None:
        while True:
            self._ended |= self._sessions.wait(LOOK_SECONDS)
            if self._closed:
                break
            try:
                self._look()
                self._listeners.enter(StoreState.CONNECTED)
            except StokerError as error:
                _log.warning("store_unreadable", cause=error.cause, remedy=error.remedy)
                self._listeners.enter(StoreState.SUSPENDED)
            self._answer()
        self._answer()
        # `close` ends the session under the lock; the peers must not see its connection end before.
        with self._lock:
            self._file.close()
            self._sessions.close()

    def _answer(self) -> None:
        while self._requests:
            self._requests.popleft()()

    def _look(self) -> None:
        reaped = bool(self._ended)
        for session_id in tuple(self._ended):
            self._reap(session_id)
            self._ended.remove(session_id)
        version = self._file.data_version()
        if reaped or version != self._data_version:
            if not (self._file.has_session(self._sessions.session_id) or self._closed):
                self._rejoin()
            self._read_news()
            self._data_version = version

    def _read_news(self) -> None:
        revision, pruned, rows = self._file.news(self._seen)
        if self._seen < pruned:
            for watcher in self._watchers:
                self._tell_all(watcher)
        self._watchers = [watcher for watcher in self._watchers if not watcher.stopped]
        for path, entry, stamp in rows:
            for watcher in tuple(self._watchers):
                if watcher.covers(path):
                    watcher.tell(path, entry, stamp)
        self._seen = revision

    def _tell_all(self, watcher: Watcher) -> None:
        present = self._file.below(watcher.prefix)
        watcher.tell_all({entry.path: (entry, stamp) for entry, stamp in present})

    def _join(self) -> Sessions:
        """Become a session, and end those that died while nobody was there to see it."""
        sessions = Sessions(self._sessions_folder)
        try:
            others = self._file.begin_session(sessions.session_id)
            dead = [other for other in others if not sessions.connect(other)]
            for session_id in dead:
                self._file.end_session(session_id)
                sessions.forget(session_id)
            for session_id in sessions.leftovers({*others, sessions.session_id}):
                sessions.forget(session_id)
        except BaseException:
            sessions.close()
            raise
        sessions.nudge()
        return sessions

    def _reap(self, session_id: str) -> None:
        # The end of its connection is proof. Connecting again is none: the listening socket of a
        # killed process may live a moment longer.
        if self._file.has_session(session_id):
            self._file.end_session(session_id)
            self._sessions.forget(session_id)
            self._sessions.nudge()
            _log.info("store_session_reaped", session=session_id)

    def _rejoin(self) -> None:
        """Someone took us for dead: our ephemeral entries are gone."""
        self._listeners.enter(StoreState.LOST)
        sessions = self._join()
        with self._lock:
            self._sessions, ended = sessions, self._sessions
        ended.close()
