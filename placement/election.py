"""Who leads: one of several candidates, over any Store.

    1. A candidate reads the epoch entry (value: the epoch in decimal, version: v).
    2. It creates the ephemeral leader entry. Who finds it there watches and waits.
    3. It writes epoch + 1 where the version is still v, and so breaks every older fence.
    4. It leads while the leader entry is its own, the epoch entry has the version of its fence, and
       the store is CONNECTED. After an interruption it begins at 1: a new epoch, a new fence.

Whatever goes wrong between 2 and 3, only who wrote the epoch last holds a fence that counts.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import structlog

from stoker.placement.errors import BadRequest, CoordinationLost, StokerError, VersionConflict
from stoker.placement.serial import SerialThread
from stoker.placement.store import ABSENT, Change, Entry, Fence, Store, StoreState

# After losing a race: what the watch last told may be true again without being told anew. After an
# error of the store: nothing may tell that it works again.
RETRY_SECONDS = 1.0

_log = structlog.get_logger()


class Election:
    """One candidate. `make_record` makes the bytes of the leader entry for an epoch, and must tell
    candidates apart.

    `on_elected(epoch, fence)` and `on_lost()` alternate, in a thread of their own. They may block
    and call the store. `leading` is false as soon as the loss is known, even while `on_elected`
    still runs; `on_lost` follows when that returned.
    """

    def __init__(
        self,
        store: Store,
        leader_path: str,
        epoch_path: str,
        make_record: Callable[[int], bytes],
        on_elected: Callable[[int, Fence], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._store = store
        self._leader_path = leader_path
        self._epoch_path = epoch_path
        self._make_record = make_record
        self._on_elected = on_elected
        self._on_lost = on_lost
        self._contest = SerialThread("stoker-election")
        self._callbacks = SerialThread("stoker-election-callbacks")
        self._stops: list[Callable[[], None]] = []
        self._retry_due = False  # belongs to _contest
        # Guards what follows.
        self._lock = threading.Lock()
        self._closed = False
        self._state = StoreState.SUSPENDED
        self._interruptions = 0
        self._record = b""
        self._told: Entry | None = None  # the leader entry, as the watch last told
        self._fence: Fence | None = None

    @property
    def leading(self) -> bool:
        return self._fence is not None

    def start(self) -> None:
        """Become a candidate; CoordinationLost if the store cannot be watched now."""
        for prefix in sorted({_folder(self._leader_path), _folder(self._epoch_path)}):
            self._stops.append(self._store.watch(prefix, self._on_change))
        self._store.on_state(self._on_state)
        self._contest.submit(self._contend)

    def close(self) -> None:
        """Resign and let another lead at once. If this one led, `on_lost` has returned by then,
        unless a callback of this election is what calls.
        """
        with self._lock:
            self._closed = True
        for stop in self._stops:
            stop()
        self._contest.close()
        self._lose()
        self._callbacks.finish()
        with contextlib.suppress(StokerError):  # then the end of the session removes it
            entry = self._store.get(self._leader_path)
            if entry and entry.value == self._record:
                self._store.delete(self._leader_path, version=entry.version)

    def _on_change(self, change: Change) -> None:
        # In the store's thread: look and hand on.
        entry = change.entry
        with self._lock:
            fence, record, told = self._fence, self._record, self._told
            if change.path == self._leader_path:
                self._told = entry
        if change.path == self._leader_path:
            replaced = fence and (entry is None or entry.value != record)
            if replaced and told and told.value == record:
                self._lose()
            elif replaced:
                # What is told before our own record may be older than it: ask the store.
                self._contest.submit(self._verify)
            if entry is None:
                self._contest.submit(self._contend)
        elif change.path == self._epoch_path:
            overtaken = fence and (entry is None or entry.version > fence.version)
            if overtaken:
                self._lose()
                self._contest.submit(self._contend)

    def _on_state(self, state: StoreState) -> None:
        with self._lock:
            self._state = state
            if state is not StoreState.CONNECTED:
                self._interruptions += 1
        if state is StoreState.CONNECTED:
            self._contest.submit(self._contend)
        else:
            self._lose()

    def _lose(self) -> None:
        with self._lock:
            if self._fence is not None:
                self._fence = None
                self._callbacks.submit(self._on_lost)
                _log.info("leadership_lost", path=self._leader_path)

    def _verify(self) -> None:
        with contextlib.suppress(CoordinationLost):  # then the state tells
            entry = self._store.get(self._leader_path)
            if entry is None or entry.value != self._record:
                self._lose()
                self._contend()

    def _contend(self) -> None:
        with self._lock:
            idle = self._closed or self._fence or self._state is not StoreState.CONNECTED
            begun = self._interruptions
        if idle:
            return
        try:
            decided = self._attempt(begun)
        except VersionConflict:
            decided = False
        except StokerError as error:
            _log.warning("election_failed", cause=error.cause, remedy=error.remedy)
            decided = False
        if not decided and not self._retry_due:
            self._retry_due = True
            self._contest.submit(self._retry, delay_seconds=RETRY_SECONDS)

    def _retry(self) -> None:
        self._retry_due = False
        self._contend()

    def _attempt(self, begun: int) -> bool:
        """Try to lead; true if this one leads, or another one does and the watch knows it."""
        present = self._store.get(self._epoch_path)
        epoch = _epoch_of(present) + 1
        held = self._store.get(self._leader_path)
        if held is not None and held.value != self._record:
            return self._told is not None
        record = self._make_record(epoch)
        with self._lock:
            self._record = record
        self._store.put(
            self._leader_path, record, version=held.version if held else ABSENT, ephemeral=True
        )
        version = self._store.put(
            self._epoch_path,
            str(epoch).encode(),
            version=present.version if present else ABSENT,
        )
        held = self._store.get(self._leader_path)
        with self._lock:
            current = self._interruptions == begun and not self._closed
            if not current or held is None or held.value != record:
                return False
            self._fence = fence = Fence(self._epoch_path, version)
            self._callbacks.submit(lambda: self._on_elected(epoch, fence))
        _log.info("leadership_won", path=self._leader_path, epoch=epoch)
        return True


def _folder(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def _epoch_of(entry: Entry | None) -> int:
    if entry is None:
        return 0
    try:
        return int(entry.value)
    except ValueError:
        raise BadRequest(
            f"Expected an epoch number in {entry.path}, found {entry.value!r:.40}.",
            "Delete the entry while no placement process runs.",
        ) from None
