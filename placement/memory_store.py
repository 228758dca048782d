"""The Store in the memory of one process, for tests: same contract, no I/O, no threads.

Sessions of one tree see each other's writes. Callbacks run in the thread of the writer before its
call returns, one at a time; a write from inside a callback is told after that callback returned.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from stoker.placement.errors import CoordinationLost
from stoker.placement.store import Change, Entry, Fence, StoreState
from stoker.placement.store_rules import (
    CALL_SECONDS_MAX,
    StateListeners,
    Watcher,
    check_fence,
    check_fence_form,
    check_path,
    check_prefix,
    check_put,
    check_version,
    closed_error,
    next_version,
    version_conflict,
)


@dataclass(frozen=True, slots=True)
class _Node:
    entry: Entry
    owner: str | None
    stamp: int


@dataclass
class _Tree:
    """Guarded by `lock`: everything. `tells` has one function for each open session."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    nodes: dict[str, _Node] = field(default_factory=dict)
    tells: list[Callable[[str, _Node | None], None]] = field(default_factory=list)
    stamps: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    deliveries: deque[Callable[[], None]] = field(default_factory=deque)
    deliverer: int | None = None

    def below(self, prefix: str) -> dict[str, tuple[Entry, int]]:
        with self.lock:
            return {
                path: (node.entry, node.stamp)
                for path, node in self.nodes.items()
                if path.startswith(prefix)
            }

    def deliver(self) -> None:
        """Make the deliveries, unless someone already does."""
        while True:
            with self.lock:
                if self.deliverer is not None or not self.deliveries:
                    return
                self.deliverer = threading.get_ident()
                delivery = self.deliveries.popleft()
            try:
                delivery()
            finally:
                self.deliverer = None

    def deliver_now(self, delivery: Callable[[], None]) -> None:
        """Make this delivery before returning, after those that wait."""
        if self.deliverer == threading.get_ident():
            delivery()
            return
        done = threading.Event()

        def deliver_and_say_so() -> None:
            delivery()
            done.set()

        self.deliveries.append(deliver_and_say_so)
        self.deliver()
        if not done.wait(CALL_SECONDS_MAX):
            raise CoordinationLost("A callback of the store did not return.", "Return quickly.")


class MemoryStore:
    def __init__(self, tree: _Tree | None = None) -> None:
        self._tree = tree or _Tree()
        self._watchers: list[Watcher] = []
        self._listeners = StateListeners()
        self._closed = False
        self._numbers = itertools.count(1)
        self._session = self._new_session()
        with self._tree.lock:
            self._tree.tells.append(self._tell)

    def session(self) -> MemoryStore:
        """Another session of the same tree, as another process would have."""
        return MemoryStore(self._tree)

    def suspend(self) -> None:
        """Be unreachable, as a server that does not answer, until `resume` or `expire`."""
        self._tree.deliver_now(lambda: self._listeners.enter(StoreState.SUSPENDED))

    def resume(self) -> None:
        self._tree.deliver_now(self._reconnect)

    def expire(self) -> None:
        """End the session as a failure would and begin a new one."""
        with self._tree.lock:
            ended, self._session = self._session, self._new_session()
            self._drop_ephemerals(ended)
        self._tree.deliver_now(lambda: self._listeners.enter(StoreState.LOST))
        self._tree.deliver_now(self._reconnect)

    def get(self, path: str) -> Entry | None:
        check_path(path)
        with self._tree.lock:
            self._check_reachable()
            node = self._tree.nodes.get(path)
            return node.entry if node else None

    def list(self, prefix: str) -> tuple[Entry, ...]:
        prefix = check_prefix(prefix)
        with self._tree.lock:
            self._check_reachable()
            found = self._tree.below(prefix)
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
        owner = self._session if ephemeral else None
        with self._tree.lock:
            self._check_reachable()
            self._check_fence(fence)
            node = self._tree.nodes.get(path)
            found = (node.entry.version, node.owner) if node else None
            new_version = next_version(path, found, version, owner)
            entry = Entry(path, bytes(value), new_version)
            self._write(path, _Node(entry, owner, next(self._tree.stamps)))
        self._tree.deliver()
        return new_version

    def delete(self, path: str, *, version: int | None = None, fence: Fence | None = None) -> bool:
        check_path(path)
        check_version(version, 0)
        check_fence_form(fence)
        with self._tree.lock:
            self._check_reachable()
            self._check_fence(fence)
            node = self._tree.nodes.get(path)
            if node is None:
                return False
            if version not in (None, node.entry.version):
                raise version_conflict(path, version or 0, node.entry.version)
            self._write(path, None)
        self._tree.deliver()
        return True

    def watch(self, prefix: str, on_change: Callable[[Change], None]) -> Callable[[], None]:
        watcher = Watcher(prefix, on_change)
        with self._tree.lock:
            self._check_reachable()

        def begin() -> None:
            with self._tree.lock:
                self._watchers.append(watcher)
                present = self._tree.below(watcher.prefix)
            watcher.tell_all(present)

        self._tree.deliver_now(begin)
        return watcher.stop

    def on_state(self, on_state: Callable[[StoreState], None]) -> None:
        self._tree.deliver_now(lambda: self._listeners.add(on_state))

    def close(self) -> None:
        with self._tree.lock:
            if self._closed:
                return
            self._closed = True
            self._listeners.clear()
            self._tree.tells.remove(self._tell)
            self._drop_ephemerals(self._session)
        self._tree.deliver()

    def _new_session(self) -> str:
        return f"{id(self)}-{next(self._numbers)}"

    def _check_reachable(self) -> None:
        if self._closed:
            raise closed_error()
        if self._listeners.state is not StoreState.CONNECTED:
            raise CoordinationLost("The store cannot be reached.", "Try again later.")

    def _check_fence(self, fence: Fence | None) -> None:
        if fence is not None:
            node = self._tree.nodes.get(fence.path)
            check_fence(fence, node.entry.version if node else None)

    def _drop_ephemerals(self, session: str) -> None:
        for path in [path for path, node in self._tree.nodes.items() if node.owner == session]:
            self._write(path, None)

    def _write(self, path: str, node: _Node | None) -> None:
        if node is None:
            del self._tree.nodes[path]
        else:
            self._tree.nodes[path] = node
        for tell in self._tree.tells:
            self._tree.deliveries.append(functools.partial(tell, path, node))

    def _tell(self, path: str, node: _Node | None) -> None:
        if self._closed or self._listeners.state is not StoreState.CONNECTED:
            return
        for watcher in self._watchers:
            if watcher.covers(path):
                watcher.tell(path, node.entry if node else None, node.stamp if node else 0)

    def _reconnect(self) -> None:
        self._listeners.enter(StoreState.CONNECTED)
        for watcher in self._watchers:
            watcher.tell_all(self._tree.below(watcher.prefix))
