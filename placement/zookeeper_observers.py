"""Who is told what in the ZooKeeper store, and how nothing is missed.

kazoo offers one-shot watches alone. A child watch on every folder and a data watch on every entry
below a prefix, each set by the read that learns the present state, miss nothing; after an outage
(any time of not being connected) all is read again, the differences are told, and then CONNECTED.

Watch callbacks and state callbacks have a thread each, so that SUSPENDED is told while a watch
callback waits for the store. Both kinds may call the store.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from stoker.placement.errors import CoordinationLost, StokerError
from stoker.placement.serial import SerialThread
from stoker.placement.store import Change, StoreState
from stoker.placement.store_rules import CALL_SECONDS_MAX, StateListeners
from stoker.placement.zookeeper_watch import Reader, TreeWatch

# Wait this long before reading again where ZooKeeper was silent and nothing tells that it is back.
RETRY_SECONDS = 1.0


class Observers:
    """`live` is set while there is a connection."""

    def __init__(self, reader: Reader, live: threading.Event) -> None:
        self._reader = reader
        self._live = live
        self._watch_thread = SerialThread("stoker-zookeeper-watch")
        self._state_thread = SerialThread("stoker-zookeeper-state")
        self._listeners = StateListeners()  # belongs to the state thread
        self._watches: list[TreeWatch] = []  # belongs to the watch thread, as what follows
        self._recovery_due = False
        self._lock = threading.Lock()  # guards what follows
        self._outages = 0
        self._changed: set[str] = set()

    def watch(
        self,
        prefix: str,
        on_change: Callable[[Change], None],
        prepare: Callable[[str], None],
    ) -> Callable[[], None]:
        """Tell all that is there, then changes. `prepare` makes the folder that is watched."""
        watch = TreeWatch(prefix, on_change, self._reader)

        def begin() -> None:
            prepare(watch.watcher.prefix)
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

    def changed(self, path: str) -> None:
        """A one-shot watch told of an entry or a folder."""
        with self._lock:
            first = not self._changed
            self._changed.add(path)
        if first:
            self._watch_thread.submit(self._refresh)

    def connected(self) -> None:
        self._watch_thread.submit(self._recover)

    def begin_outage(self, state: StoreState) -> None:
        with self._lock:
            self._outages += 1
            self._state_thread.submit(lambda: self._listeners.enter(state))
        self._watch_thread.submit(self._mark_stale)

    def close(self) -> None:
        """No callback comes after it."""
        for watch in tuple(self._watches):
            watch.watcher.stop()
        self._watch_thread.close()
        self._state_thread.close()

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
            return  # `connected` comes here again
        outages = self._outages
        try:
            self._reader.children(["/"], watched=False)
            for watch in tuple(self._watches):
                if watch.stale:
                    watch.refresh_all()
        except CoordinationLost:
            self._recover_later()
            return
        with self._lock:
            if outages == self._outages:
                self._state_thread.submit(lambda: self._listeners.enter(StoreState.CONNECTED))
