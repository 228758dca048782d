"""The ephemeral records of one node, kept equal in the store to what the agent wants to say."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import structlog

from stoker.placement.errors import CoordinationLost

RETRY_SECONDS_MINIMUM = 0.1
RETRY_SECONDS_MAXIMUM = 5.0

_log = structlog.get_logger()


class RecordStore(Protocol):
    """What the announcements need of the store."""

    def put(self, path: str, value: bytes, *, ephemeral: bool = False) -> int: ...

    def delete(self, path: str) -> bool: ...


class Announcements:
    """Wanted records go to the store one at a time; what the store lost is written again.

    Only the last value matters, so values that changed again before their turn are skipped.
    Every method runs in the event loop; the store is called in a thread.
    """

    def __init__(self, store: RecordStore) -> None:
        self._store = store
        self._wanted: dict[str, bytes] = {}
        self._written: dict[str, bytes] = {}
        self._losses = 0
        # Its own thread: no slow source may keep the node from saying that it is there.
        self._thread = ThreadPoolExecutor(1, "announce")
        self._dirty = asyncio.Event()
        self._reachable = asyncio.Event()
        self._waiters: list[tuple[str, asyncio.Future[None]]] = []

    def put(self, path: str, value: bytes) -> None:
        self._wanted[path] = value
        self._dirty.set()

    def remove(self, path: str) -> None:
        self._wanted.pop(path, None)
        self._dirty.set()

    def wanted(self, prefix: str) -> tuple[str, ...]:
        return tuple(path for path in self._wanted if path.startswith(prefix))

    def vanished(self, path: str) -> None:
        """The store has no entry at `path` now; it is written again if it is still wanted."""
        self._losses += 1
        self._written.pop(path, None)
        self._dirty.set()

    def forget(self) -> None:
        """The session was lost, and every ephemeral entry with it."""
        self._losses += 1
        self._written.clear()
        self._dirty.set()

    def hurry(self) -> None:
        """The store can be reached again."""
        self._reachable.set()

    async def settled(self, path: str, timeout_seconds: float) -> bool:
        """Wait until the store has what is wanted at `path`; False if it took too long."""
        if not self._differs(path):
            return True
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((path, waiter))
        try:
            await asyncio.wait_for(waiter, timeout_seconds)
        except TimeoutError:
            return False
        finally:
            self._waiters.remove((path, waiter))
        return True

    async def run(self) -> None:
        """Write until cancelled."""
        delay = RETRY_SECONDS_MINIMUM
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                while (path := self._next()) is not None:
                    await self._write(path)
                    self._tell_waiters()
                    delay = RETRY_SECONDS_MINIMUM
            except CoordinationLost as error:
                _log.warning("announcement_delayed", cause=error.cause)
                self._reachable.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._reachable.wait(), delay)
                delay = min(2 * delay, RETRY_SECONDS_MAXIMUM)
                self._dirty.set()

    async def _write(self, path: str) -> None:
        value, losses = self._wanted.get(path), self._losses
        if value is None:
            await self._in_thread(lambda: self._store.delete(path))
            self._written.pop(path, None)
            return
        await self._in_thread(lambda: self._store.put(path, value, ephemeral=True))
        if losses == self._losses:  # else it may be what was lost, and is written once more
            self._written[path] = value

    async def _in_thread(self, call: Callable[[], object]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _next(self) -> str | None:
        """A path whose entry differs; instances first, because a client may wait for one."""
        paths = [path for path in {**self._wanted, **self._written} if self._differs(path)]
        return min(paths, key=lambda path: not path.startswith("/instances/"), default=None)

    def _differs(self, path: str) -> bool:
        return self._wanted.get(path) != self._written.get(path)

    def _tell_waiters(self) -> None:
        for path, waiter in self._waiters:
            if not waiter.done() and not self._differs(path):
                waiter.set_result(None)
