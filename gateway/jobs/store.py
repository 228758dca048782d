"""The file of the queue and the one thread that works on it.

    caller ── run(operation) ──> deque ──> one transaction of many operations ──> commit (synced)
       ^                                                                              │
       └────────────────────────── results, all at once <─────────────────────────────┘

A caller hears of its operation only when it is on the disk; those that come while a commit is
being synced share the next one. Other processes with the same file are told by a byte on a socket
(`Sessions`), and the end of that connection is how their death is noticed: nothing is polled.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog

from stoker.gateway.jobs.queue import JobQueue
from stoker.gateway.jobs.records import Bounds
from stoker.gateway.jobs.schema import SCHEMA, SCHEMA_VERSION
from stoker.placement.errors import StokerError, StorageFull, Unavailable
from stoker.placement.sqlite_file import create_private, opening, transaction
from stoker.placement.sqlite_sessions import Sessions

BUSY_SECONDS_MAXIMUM = 5.0
BATCH_MAXIMUM = 256
# A disk that hangs must not hold clients; what was asked of it may still happen.
ANSWER_SECONDS_MAXIMUM = 30.0
JOURNAL_BYTES_KEPT = 64 << 20
# The clock of the wall may be set back: what is to expire is looked at this often in any case.
LOOK_SECONDS = 3600.0
CLOSE_SECONDS_MAXIMUM = 10.0
T = TypeVar("T")

_log = structlog.get_logger()


class QueueRunner(Protocol):
    """What the rest of the package needs of the store."""

    @property
    def lease(self) -> str:
        """What this process holds its running jobs by."""

    async def run(self, operation: Callable[[JobQueue], T]) -> T:
        """What `operation` returns, once it is on the disk; or its error, and nothing of it is."""

    async def ask(self, operation: Callable[[JobQueue], T]) -> T:
        """As `run`, for who has to answer somebody: Unavailable if it takes too long."""


class _Asked:
    """One operation under way; `result` and `error` are set before `future` is."""

    __slots__ = ("error", "future", "operation", "result")

    def __init__(self, operation: Callable[[JobQueue], Any], future: asyncio.Future[Any]) -> None:
        self.operation = operation
        self.future = future
        self.result: Any = None
        self.error: BaseException | None = None


class JobStore:
    """To be made inside the event loop, in which `on_news` is called as well.

    `on_interrupted` hears, in any thread, how many jobs a process that is gone had running.

    `folder` is made if need be, for this user alone. StorageFull, Unavailable, and CoordinationLost
    if its sockets cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        bounds: Bounds,
        on_news: Callable[[], None],
        on_interrupted: Callable[[int], None],
    ) -> None:
        self._path = folder / "jobs.sqlite"
        self._loop = asyncio.get_running_loop()
        self._on_news = on_news
        self._on_interrupted = on_interrupted
        self._asked: deque[_Asked] = deque()
        self._batch: list[_Asked] = []
        self._closed = False
        self._expire_at = 0.0
        self._ended: set[str] = set()
        self._data_version = -1
        with _translated(self._path):
            create_private(self._path)
        with opening(self._path), _translated(self._path):
            self._db = sqlite3.connect(
                self._path,
                timeout=BUSY_SECONDS_MAXIMUM,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                self._set_up()
            except BaseException:
                self._db.close()
                raise
        self._queue = JobQueue(self._db, bounds)
        try:
            self._sessions = self._join(folder / "sessions")
        except BaseException:
            self._db.close()
            raise
        self._thread = threading.Thread(target=self._work, name="stoker-jobs", daemon=True)
        self._thread.start()

    @property
    def lease(self) -> str:
        return self._sessions.session_id

    async def run(self, operation: Callable[[JobQueue], T]) -> T:
        if self._closed:
            raise Unavailable("The queue of jobs is closed.", "Ask another gateway.")
        asked = _Asked(operation, self._loop.create_future())
        self._asked.append(asked)
        self._sessions.wake()
        found: T = await asked.future
        return found

    async def ask(self, operation: Callable[[JobQueue], T]) -> T:
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAXIMUM):
                return await self.run(operation)
        except TimeoutError:
            raise Unavailable(
                f"Expected the queue of jobs {self._path} to answer within "
                f"{ANSWER_SECONDS_MAXIMUM:g} s, found it busy.",
                "See whether the disk under it still answers.",
                retry_after_seconds=ANSWER_SECONDS_MAXIMUM,
            ) from None

    async def close(self) -> None:
        """Do what was asked before, then end the leases of this process."""
        self._closed = True
        self._sessions.wake()
        await asyncio.to_thread(self._thread.join, CLOSE_SECONDS_MAXIMUM)

    def _set_up(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL").fetchone()
        self._db.execute("PRAGMA synchronous=FULL").fetchone()
        self._db.execute(f"PRAGMA journal_size_limit={JOURNAL_BYTES_KEPT}").fetchone()
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if found not in (0, SCHEMA_VERSION):
            raise Unavailable(
                f"Expected schema {SCHEMA_VERSION} in {self._path}, found {found}.",
                "Run the release of Stoker that wrote it, or move the file away.",
            )
        if not found:
            self._db.executescript(SCHEMA)
            self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    def _join(self, folder: Path) -> Sessions:
        """Meet the other processes, and take back what dead ones had running."""
        sessions = Sessions(folder)
        try:
            for other in [path.stem for path in folder.glob("*.sock")]:
                if other != sessions.session_id and not sessions.connect(other):
                    sessions.forget(other)
            with _translated(self._path), transaction(self._db):
                for lease in self._queue.leases():
                    # Who came after we looked around answers, though we never met it.
                    if not sessions.answers(lease):
                        self._reap(lease)
        except BaseException:
            sessions.close()
            raise
        return sessions

    def _work(self) -> None:
        try:
            while not (self._closed and not self._asked):
                self._turn()
        finally:
            # Nobody may wait for who is gone; others take over what this process had leased.
            self._closed = True
            left = [*self._batch, *self._asked]
            self._fail(left, Unavailable("The queue of jobs has ended in this process."))
            self._answer(left, news=False)
            self._db.close()
            self._sessions.close()

    def _turn(self) -> None:
        """Wait for something to do, and do it in one transaction."""
        wait_seconds = min(LOOK_SECONDS, max(0.0, self._expire_at - time.time()))
        self._ended |= self._sessions.wait(0.0 if self._asked else wait_seconds)
        count = min(len(self._asked), BATCH_MAXIMUM)
        self._batch = batch = [self._asked.popleft() for _ in range(count)]
        try:
            with _translated(self._path), transaction(self._db):
                self._operate(batch)
            self._ended.clear()
        except StokerError as error:
            _log.warning("jobs_unwritten", cause=error.cause, remedy=error.remedy)
            self._fail(batch, error)
            # Nothing tells when a disk has room again.
            self._expire_at = time.time() + BUSY_SECONDS_MAXIMUM
        self._tell(batch)
        self._batch = []

    def _operate(self, batch: list[_Asked]) -> None:
        now = time.time()
        for lease in self._ended:
            self._reap(lease)
        for asked in batch:
            if asked.future.cancelled():
                continue
            self._db.execute("SAVEPOINT operation")
            try:
                asked.result = asked.operation(self._queue)
            except sqlite3.Error:
                # The whole transaction may be gone by itself, as it is when the disk is full.
                raise
            except Exception as error:  # noqa: BLE001 - handed to the caller
                asked.error = error
                self._db.execute("ROLLBACK TO operation")
            self._db.execute("RELEASE operation")
        if now >= self._expire_at:
            self._expire_at = min(self._queue.expire(now), now + LOOK_SECONDS)

    def _reap(self, lease: str) -> None:
        """Every process that is left does this; the first one finds something."""
        count = self._queue.reap(lease, time.time())
        if count:
            _log.warning("jobs_interrupted", count=count)
            self._on_interrupted(count)

    def _tell(self, batch: list[_Asked]) -> None:
        news, self._queue.news = self._queue.news, False
        if news:
            self._sessions.nudge()
        # It differs when another process has written.
        (version,) = self._db.execute("PRAGMA data_version").fetchone()
        news, self._data_version = news or version != self._data_version, version
        self._answer(batch, news)

    def _fail(self, batch: list[_Asked], error: StokerError) -> None:
        for asked in batch:
            # One error object for each, for every raise adds its traceback to it.
            asked.error = StokerError.from_wire(error.to_wire())

    def _answer(self, batch: list[_Asked], news: bool) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._settle, batch, news)

    def _settle(self, batch: list[_Asked], news: bool) -> None:
        for asked in batch:
            if asked.future.done():
                continue
            if asked.error is not None:
                asked.future.set_exception(asked.error)
            else:
                asked.future.set_result(asked.result)
        if news:
            self._on_news()


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn what sqlite3 and the system raise into StorageFull and Unavailable."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        # The low byte of an extended code is the primary one.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise StorageFull(
                f"Expected room for jobs in {path}, found: {error}.",
                "Free space on its file system.",
                retry_after_seconds=BUSY_SECONDS_MAXIMUM,
            ) from error
        raise Unavailable(
            f"Expected to use the queue of jobs {path}, found: {error}.",
            "See whether its disk is healthy. A damaged file: stop Stoker, and move it away.",
            retry_after_seconds=BUSY_SECONDS_MAXIMUM,
        ) from error
