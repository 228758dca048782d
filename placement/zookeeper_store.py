"""The Store in ZooKeeper, by kazoo. How entries lie in it: zookeeper_watch.

kazoo offers one-shot watches alone. A child watch on every folder and a data watch on every entry
below a prefix, each set by the read that learns the present state, miss nothing; after a lost
connection all is read again, the differences are told, and then CONNECTED.

Three kinds of threads: kazoo's own, which only hand on; one for watch callbacks; one for state
callbacks, so that SUSPENDED is told while a watch callback waits for the store. Both may call it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from kazoo.client import KazooClient, KazooState
from kazoo.exceptions import (
    BadVersionError,
    ConnectionLoss,
    KazooException,
    NodeExistsError,
    NoNodeError,
    RolledBackError,
    RuntimeInconsistency,
    SessionExpiredError,
)
from kazoo.handlers.threading import KazooTimeoutError

from stoker.placement.errors import CoordinationLost, StokerError
from stoker.placement.serial import SerialThread
from stoker.placement.store import ABSENT, Change, Entry, Fence, StoreState
from stoker.placement.store_rules import (
    CALL_SECONDS_MAX,
    StateListeners,
    check_fence_form,
    check_path,
    check_prefix,
    check_put,
    check_version,
    closed_error,
    fenced,
    version_conflict,
)
from stoker.placement.zookeeper_watch import TreeWatch, entry_znode, folder_znode, of_znode, walk

SESSION_SECONDS = 6.0
# Wait this long before reading again where ZooKeeper was silent and nothing tells that it is back.
RETRY_SECONDS = 1.0
# put() without a version races with others who create and delete; each lost race is another's win.
ATTEMPTS_MAX = 64
_ANY_VERSION = -1
_READS_IN_FLIGHT_MAX = 256
_T = TypeVar("_T")
_STATES = {KazooState.SUSPENDED: StoreState.SUSPENDED, KazooState.LOST: StoreState.LOST}


class ZooKeeperStore:
    """`hosts` is `host:port[,host:port]`; every entry lies below the znode `chroot`."""

    def __init__(
        self, hosts: str, chroot: str = "/stoker", *, session_seconds: float = SESSION_SECONDS
    ) -> None:
        self._hosts = hosts
        self._chroot = chroot
        self._closed = False
        self._folders_made: set[str] = set()
        self._live = threading.Event()
        self._listeners = StateListeners()  # belongs to _state_thread
        self._watches: list[TreeWatch] = []  # belongs to _watch_thread, as _recovery_due
        self._recovery_due = False
        # Guards what follows. An outage is any time of not being connected.
        self._lock = threading.Lock()
        self._outages = 0
        self._changed: set[str] = set()
        self._client = KazooClient(
            hosts=hosts,
            timeout=session_seconds,
            connection_retry={"max_tries": -1, "delay": 0.05, "max_delay": 0.5},
        )
        self._watch_thread = SerialThread("stoker-zookeeper-watch")
        self._state_thread = SerialThread("stoker-zookeeper-state")
        self._client.add_listener(self._on_kazoo_state)
        self._client.start_async()
        try:
            with self._call("create", "/") as deadline:
                self._ensure_folder("/", deadline)
        except StokerError:
            self.close()
            raise

    def get(self, path: str) -> Entry | None:
        check_path(path)
        (found,) = self._retried(lambda: self.entries([path], watched=False))
        return found[0] if found else None

    def list(self, prefix: str) -> tuple[Entry, ...]:
        prefix = check_prefix(prefix)
        found, _ = self._retried(lambda: walk(self, prefix, watched=False))
        return tuple(found[path][0] for path in sorted(found))

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
        value = bytes(value)
        with self._call("write", path) as deadline:
            for _ in range(ATTEMPTS_MAX):
                if version != ABSENT:
                    replaced = self._replace(path, value, version, ephemeral, fence, deadline)
                    if replaced is not None:
                        return replaced
                if self._create(path, value, ephemeral, fence, deadline):
                    return 0
                if version == ABSENT:
                    raise self._conflict(path, ABSENT)
        raise CoordinationLost(
            f"Expected to write {path} within {ATTEMPTS_MAX} attempts, found it created and "
            "deleted by others each time.",
            "Try again later.",
        )

    def delete(self, path: str, *, version: int | None = None, fence: Fence | None = None) -> bool:
        check_path(path)
        check_version(version, 0)
        check_fence_form(fence)
        expected = _ANY_VERSION if version is None else version
        with self._call("delete", path) as deadline:
            try:
                self._commit(fence, deadline, lambda t: t.delete(self._entry(path), expected))
            except NoNodeError:
                return False
            except BadVersionError:
                raise self._conflict(path, expected) from None
        return True

    def watch(self, prefix: str, on_change: Callable[[Change], None]) -> Callable[[], None]:
        watch = TreeWatch(prefix, on_change, self)

        def begin() -> None:
            with self._call("watch", prefix) as deadline:
                self._ensure_folder(watch.watcher.prefix, deadline)
            watch.refresh_all()
            self._watches.append(watch)

        try:
            self._watch_thread.call(begin, timeout_seconds=CALL_SECONDS_MAX)
        except StokerError:
            watch.watcher.stop()
            raise
        return watch.watcher.stop

    def on_state(self, on_state: Callable[[StoreState], None]) -> None:
        self._state_thread.call(
            lambda: self._listeners.add(on_state), timeout_seconds=CALL_SECONDS_MAX
        )

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._client.remove_listener(self._on_kazoo_state)
        self._watch_thread.close()
        self._state_thread.close()
        # A server that does not answer ends the session by its timeout instead.
        with contextlib.suppress(KazooException, OSError, KazooTimeoutError):
            self._client.stop()
        with contextlib.suppress(KazooException, OSError):
            self._client.close()

    def children(self, folders: Sequence[str], *, watched: bool) -> list[list[str] | None]:
        """For TreeWatch: one read, not repeated."""
        told = self._on_event if watched else None
        client = self._client
        return self._read(folders, lambda f: client.get_children_async(self._folder(f), told))

    def entries(self, paths: Sequence[str], *, watched: bool) -> list[tuple[Entry, int] | None]:
        """For TreeWatch: one read, not repeated."""
        told = self._on_event if watched else None
        client = self._client
        found = self._read(paths, lambda path: client.get_async(self._entry(path), told))
        return [
            (Entry(path, data[0], data[1].version), data[1].mzxid) if data else None
            for path, data in zip(paths, found, strict=True)
        ]

    def _replace(
        self,
        path: str,
        value: bytes,
        version: int | None,
        ephemeral: bool,
        fence: Fence | None,
        deadline: float,
    ) -> int | None:
        """Write over what is there; None if nothing was and nothing had to be."""
        znode = self._entry(path)
        owner = self._client.client_id[0] if ephemeral and self._client.client_id else 0
        expected = _ANY_VERSION if version is None else version
        try:
            stat = self._commit(fence, deadline, lambda t: t.set_data(znode, value, expected))
        except NoNodeError:
            if version is None:
                return None
            raise self._conflict(path, version) from None
        except BadVersionError:
            raise self._conflict(path, expected) from None
        if stat.ephemeralOwner == owner:
            return int(stat.version)

        def own(transaction: Any) -> None:
            transaction.delete(znode, stat.version)
            transaction.create(znode, value, ephemeral=ephemeral)

        # The owner of a znode cannot be changed: make it anew.
        try:
            self._commit(fence, deadline, own)
        except BadVersionError:
            return int(stat.version)  # our write was made, and another came after it
        except NoNodeError:
            self._create(path, value, ephemeral, fence, deadline)  # its session ended meanwhile
        return 0

    def _create(
        self, path: str, value: bytes, ephemeral: bool, fence: Fence | None, deadline: float
    ) -> bool:
        """Create the entry; False if there was one."""
        znode = self._entry(path)
        folder = path.rpartition("/")[0] + "/"
        for attempt in range(2):
            self._ensure_folder(folder, deadline)
            try:
                self._commit(fence, deadline, lambda t: t.create(znode, value, ephemeral=ephemeral))
                return True
            except NodeExistsError:
                return False
            except NoNodeError:
                # Only a foreign hand removes a folder.
                self._folders_made.clear()
                if attempt:
                    raise
        return False

    def _commit(self, fence: Fence | None, deadline: float, add: Callable[[Any], None]) -> Any:
        """Commit one operation, fenced; return its result or raise its kazoo error."""
        transaction = self._client.transaction()
        if fence is not None:
            transaction.check(self._entry(fence.path), fence.version)
        add(transaction)
        results = _result(transaction.commit_async(), deadline)
        if fence is not None and isinstance(results[0], NoNodeError | BadVersionError):
            missing = isinstance(results[0], NoNodeError)
            raise fenced(fence, "none" if missing else "another version")
        for result in results:
            innocent = isinstance(result, RolledBackError | RuntimeInconsistency)
            if isinstance(result, Exception) and not innocent:
                raise result
        return results[-1]

    def _ensure_folder(self, folder: str, deadline: float) -> None:
        if folder in self._folders_made:
            return
        steps = self._folder(folder).split("/")
        znodes = ["/".join(steps[:n]) for n in range(2, len(steps) + 1)]
        for pending in [self._client.create_async(znode, b"") for znode in znodes]:
            with contextlib.suppress(NodeExistsError):
                _result(pending, deadline)
        self._folders_made.add(folder)

    def _conflict(self, path: str, expected: int) -> StokerError:
        found = self.get(path)
        return version_conflict(path, expected, found.version if found else None)

    def _entry(self, path: str) -> str:
        return self._chroot + entry_znode(path)

    def _folder(self, folder: str) -> str:
        return self._chroot + folder_znode(folder)

    @contextlib.contextmanager
    def _call(self, verb: str, path: str) -> Iterator[float]:
        """Wait for a connection, give the deadline, and translate what kazoo raises."""
        deadline = time.monotonic() + CALL_SECONDS_MAX
        self._await_connection(deadline)
        try:
            yield deadline
        except (KazooTimeoutError, KazooException, OSError) as error:
            if isinstance(error, KazooTimeoutError):
                self._begin_outage(StoreState.SUSPENDED)
            raise CoordinationLost(
                f"Expected ZooKeeper at {self._hosts} to {verb} {path}, found: "
                f"{type(error).__name__}.",
                "Read before you write again: it may have been done.",
            ) from error

    def _await_connection(self, deadline: float) -> None:
        if self._closed:
            raise closed_error()
        if not self._live.wait(max(0.0, deadline - time.monotonic())):
            raise CoordinationLost(
                f"Expected a connection to ZooKeeper at {self._hosts} within "
                f"{CALL_SECONDS_MAX:g} s, found none.",
                "See whether its servers run and can be reached from here.",
            )

    def _retried(self, read: Callable[[], _T]) -> _T:
        """Repeat a read that a lost connection interrupted, until the deadline."""
        deadline = time.monotonic() + CALL_SECONDS_MAX
        while True:
            self._await_connection(deadline)
            try:
                return read()
            except CoordinationLost as error:
                interrupted = isinstance(error.__cause__, ConnectionLoss | SessionExpiredError)
                if not interrupted or time.monotonic() > deadline:
                    raise

    def _read(self, what: Sequence[str], start: Callable[[str], Any]) -> list[Any]:
        """Read many at once; None where there is nothing."""
        results: list[Any] = []
        with self._call("read", what[0] if what else "/") as deadline:
            for begin in range(0, len(what), _READS_IN_FLIGHT_MAX):
                batch = [start(path) for path in what[begin : begin + _READS_IN_FLIGHT_MAX]]
                for pending in batch:
                    try:
                        results.append(_result(pending, deadline))
                    except NoNodeError:
                        results.append(None)
        return results

    def _on_event(self, event: Any) -> None:
        with self._lock:
            first = not self._changed
            self._changed.add(of_znode(event.path.removeprefix(self._chroot)))
        if first:
            self._watch_thread.submit(self._refresh)

    def _refresh(self) -> None:
        with self._lock:
            changed, self._changed = self._changed, set()
        self._watches = [watch for watch in self._watches if not watch.watcher.stopped]
        for watch in tuple(self._watches):
            if not watch.stale:
                watch.stale = True
                with contextlib.suppress(CoordinationLost):
                    watch.refresh(changed)
                    watch.stale = False
        if any(watch.stale for watch in self._watches):
            self._recover_later()

    def _on_kazoo_state(self, state: str) -> None:
        if state == KazooState.CONNECTED:
            self._live.set()
            self._watch_thread.submit(self._recover)
        else:
            self._live.clear()
            self._begin_outage(_STATES[state])

    def _begin_outage(self, state: StoreState) -> None:
        with self._lock:
            self._outages += 1
            self._state_thread.submit(lambda: self._listeners.enter(state))
        self._watch_thread.submit(self._mark_stale)

    def _mark_stale(self) -> None:
        for watch in self._watches:
            watch.stale = True
        self._recover_later()

    def _recover_later(self) -> None:
        if not self._recovery_due:
            self._recovery_due = True
            self._watch_thread.submit(self._retry, delay_seconds=RETRY_SECONDS)

    def _retry(self) -> None:
        self._recovery_due = False
        self._recover()

    def _recover(self) -> None:
        """Read again all that may have been missed; then we are connected."""
        if not self._live.is_set():
            return  # kazoo's next CONNECTED comes here again
        outages = self._outages
        try:
            self.children(["/"], watched=False)
            for watch in tuple(self._watches):
                if watch.stale:
                    watch.refresh_all()
        except CoordinationLost:
            self._recover_later()
            return
        with self._lock:
            if outages == self._outages:
                self._state_thread.submit(lambda: self._listeners.enter(StoreState.CONNECTED))


def _result(pending: Any, deadline: float) -> Any:
    return pending.get(timeout=max(0.001, deadline - time.monotonic()))
