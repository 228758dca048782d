"""The Store in ZooKeeper, by kazoo. How entries lie in it: zookeeper_watch.

Only this module knows kazoo; who is told of changes is zookeeper_observers. Every znode is open to
the processes of the cluster alone: ZooKeeper is told a password made from the cluster's token.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from kazoo.client import KazooClient, KazooState
from kazoo.exceptions import (
    BadVersionError,
    ConnectionLoss,
    KazooException,
    NoAuthError,
    NodeExistsError,
    NoNodeError,
    RolledBackError,
    RuntimeInconsistency,
    SessionExpiredError,
)
from kazoo.handlers.threading import KazooTimeoutError
from kazoo.security import make_digest_acl

from stoker.placement.errors import CoordinationLost, StokerError, Unauthorized
from stoker.placement.store import ABSENT, Change, Entry, Fence, StoreState
from stoker.placement.store_rules import (
    CALL_SECONDS_MAX,
    check_fence_form,
    check_path,
    check_prefix,
    check_put,
    check_version,
    closed_error,
    fenced,
    version_conflict,
)
from stoker.placement.zookeeper_observers import Observers
from stoker.placement.zookeeper_watch import entry_znode, folder_znode, of_znode, walk

SESSION_SECONDS = 6.0
# put() without a version races with others who create and delete; each lost race is another's win.
ATTEMPTS_MAX = 64
_ANY_VERSION = -1
_READS_IN_FLIGHT_MAX = 256
_USER = "stoker"
_T = TypeVar("_T")
_STATES = {KazooState.SUSPENDED: StoreState.SUSPENDED, KazooState.LOST: StoreState.LOST}


class ZooKeeperStore:
    """`hosts` is `host:port[,host:port]`; every entry lies below the znode `chroot`.

    Unauthorized if the entries there were made by processes with another cluster token.
    """

    def __init__(
        self,
        hosts: str,
        chroot: str,
        cluster_token: str,
        *,
        session_seconds: float = SESSION_SECONDS,
    ) -> None:
        self._hosts = hosts
        self._chroot = chroot
        self._closed = False
        self._folders_made: set[str] = set()
        self._live = threading.Event()
        self._observers = Observers(self, self._live)
        self._client = KazooClient(
            hosts=hosts,
            timeout=session_seconds,
            connection_retry={"max_tries": -1, "delay": 0.05, "max_delay": 0.5},
            **_credentials(cluster_token),
        )
        self._client.add_listener(self._on_kazoo_state)
        self._client.start_async()
        try:
            with self._call("create", "/") as deadline:
                self._ensure_folder("/", deadline)
                _result(self._client.get_children_async(chroot), deadline)
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
                if version == ABSENT:
                    if self._create(path, value, ephemeral, fence, deadline):
                        return 0
                    raise self._conflict(path, ABSENT)
                written = self._replace(path, value, version, ephemeral, fence, deadline)
                if written is not None:
                    return written
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
        def prepare(folder: str) -> None:
            with self._call("watch", prefix) as deadline:
                self._ensure_folder(folder, deadline)

        return self._observers.watch(prefix, on_change, prepare)

    def on_state(self, on_state: Callable[[StoreState], None]) -> None:
        self._observers.on_state(on_state)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._client.remove_listener(self._on_kazoo_state)
        self._observers.close()
        # A server that does not answer ends the session by its timeout instead.
        with contextlib.suppress(KazooException, OSError, KazooTimeoutError):
            self._client.stop()
        with contextlib.suppress(KazooException, OSError):
            self._client.close()

    def children(self, folders: Sequence[str], *, watched: bool) -> Sequence[Sequence[str] | None]:
        """For TreeWatch: one read, not repeated."""
        told = self._on_event if watched else None
        client = self._client
        return self._read(folders, lambda f: client.get_children_async(self._folder(f), told))

    def entries(self, paths: Sequence[str], *, watched: bool) -> Sequence[tuple[Entry, int] | None]:
        """For TreeWatch: one read, not repeated."""
        told = self._on_event if watched else None
        client = self._client
        found = self._read(paths, lambda path: client.get_async(self._entry(path), told))
        return [
            (Entry(path, each[0], each[1].version), each[1].mzxid) if each else None
            for path, each in zip(paths, found, strict=True)
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
        """Write what is there anew; None if it changed meanwhile, and is to be looked at again.

        The owner of a znode cannot be changed: one of another owner is deleted and created in one
        transaction.
        """
        znode = self._entry(path)
        owner = self._client.client_id[0] if ephemeral and self._client.client_id else 0
        present = _result(self._client.exists_async(znode), deadline)
        try:
            if version is not None and (present is None or present.version != version):
                # What one server says may be late; a transaction is decided by most of them.
                self._commit(fence, deadline, lambda t: t.check(znode, version))
                return None
            if present is None:
                return 0 if self._create(path, value, ephemeral, fence, deadline) else None
            exact = present.version
            if present.ephemeralOwner != owner:
                self._commit(fence, deadline, lambda t: _own(t, znode, value, exact, ephemeral))
                return 0
            stat = self._commit(fence, deadline, lambda t: t.set_data(znode, value, exact))
        except (NoNodeError, BadVersionError):
            if version is None:
                return None
            raise self._conflict(path, version) from None
        if stat.ephemeralOwner == owner:
            return int(stat.version)
        # Another made it anew between the two, with the same version.
        try:
            self._commit(fence, deadline, lambda t: _own(t, znode, value, stat.version, ephemeral))
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
            if isinstance(error, NoAuthError):
                raise _not_ours(self._hosts, self._chroot) from error
            if isinstance(error, KazooTimeoutError):
                self._observers.begin_outage(StoreState.SUSPENDED)
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

    def _read(self, what: Sequence[str], start: Callable[[str], Any]) -> Sequence[Any]:
        """Read many at once; None where there is nothing."""
        results = []
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
        if event.path is not None:  # else the session ended, and the state tells
            self._observers.changed(of_znode(event.path.removeprefix(self._chroot)))

    def _on_kazoo_state(self, state: str) -> None:
        if state == KazooState.CONNECTED:
            self._live.set()
            self._observers.connected()
        else:
            self._live.clear()
            self._observers.begin_outage(_STATES[state])


def probe(hosts: str, chroot: str, cluster_token: str) -> bool:
    """Whether `chroot` exists; makes nothing. CoordinationLost if no server answers, Unauthorized
    if it was made with another token.
    """
    client = KazooClient(hosts=hosts, timeout=SESSION_SECONDS, **_credentials(cluster_token))
    try:
        client.start(timeout=CALL_SECONDS_MAX)
        client.get_children(chroot)
        return True
    except NoNodeError:
        return False
    except NoAuthError as error:
        raise _not_ours(hosts, chroot) from error
    except (KazooTimeoutError, KazooException, OSError) as error:
        raise CoordinationLost(
            f"Expected an answer of ZooKeeper at {hosts} within {CALL_SECONDS_MAX:g} s, found: "
            f"{type(error).__name__}.",
            "See whether its servers run and can be reached from here.",
        ) from error
    finally:
        client.stop()
        client.close()


def _credentials(cluster_token: str) -> dict[str, Any]:
    """What KazooClient takes. A digest crosses the network in the clear: the token itself, which
    opens every process of the cluster, does not.
    """
    password = hmac.new(cluster_token.encode(), b"zookeeper", hashlib.sha256).hexdigest()
    return {
        "auth_data": [("digest", f"{_USER}:{password}")],
        "default_acl": [make_digest_acl(_USER, password, all=True)],
    }


def _not_ours(hosts: str, chroot: str) -> Unauthorized:
    return Unauthorized(
        f"Expected ZooKeeper at {hosts} to let us into {chroot}, found that processes with another "
        "cluster token made it.",
        "Give every process of the cluster the same STOKER_CLUSTER_TOKEN_FILE.",
    )


def _own(transaction: Any, znode: str, value: bytes, version: int, ephemeral: bool) -> None:
    transaction.delete(znode, version)
    transaction.create(znode, value, ephemeral=ephemeral)


def _result(pending: Any, deadline: float) -> Any:
    return pending.get(timeout=max(0.001, deadline - time.monotonic()))
