"""The Store: what gateway, placement and agents share. One contract, three stores.

Contract (tests/placement/test_store_contract.py holds every line for every store):

- Paths are absolute, `/a/b`; every entry has a value (bytes) and a version that grows by one with
  each write, from 0 at creation. Writes are durable when the call returns, and linearizable.
- `put(version=ABSENT)` creates, `put(version=n)` replaces exactly version n, `put()` does either.
- A `fence` is checked in the same transaction as the write: the entry at `fence.path` must still
  have `fence.version`, or nothing is written and `Fenced` is raised.
- Writing an entry of another owner (ephemeral or not, of another session) makes it anew, from
  version 0. ZooKeeper tells versions apart, but not owners: a write that races with one that
  changes the owner may begin at 0 too, and be seen with the other owner before. Deleting what is
  not there says so and is no conflict.
- An ephemeral entry is gone soon after its process is, however that ended.
- Prefixes match strictly below, at `/` boundaries; `/a` and `/a/` mean the same.
- `watch` first delivers every present entry below the prefix, then every change. Intermediate
  values may be skipped; the last one never is, also across a lost connection. Changes of one
  watch come from one thread, one at a time, and must be consumed quickly; they may call the
  store. `watch` returns after the first delivery: hold no lock that the callback needs.
- `on_state` tells SUSPENDED (the store cannot be reached; who leads must stop deciding), LOST
  (the session is over: ephemeral entries are gone and must be written again) and CONNECTED.
- What the store cannot do now is CoordinationLost (a write may have happened all the same); what
  a caller got wrong is a Conflict.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

ABSENT = -1
VALUE_BYTES_MAX = 1_000_000  # ZooKeeper's jute.maxbuffer is 1 MiB with headers


@dataclass(frozen=True, slots=True)
class Entry:
    path: str
    value: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Change:
    """The entry now at `path`; None when it was deleted."""

    path: str
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class Fence:
    """Holds while the entry at `path` has `version`."""

    path: str
    version: int


class StoreState(enum.Enum):
    CONNECTED = "connected"
    SUSPENDED = "suspended"
    LOST = "lost"


class Store(Protocol):
    def get(self, path: str) -> Entry | None:
        """The entry at `path`, or None."""

    def list(self, prefix: str) -> tuple[Entry, ...]:
        """Every entry below `prefix`, at any depth, in the order of their paths."""

    def put(
        self,
        path: str,
        value: bytes,
        *,
        version: int | None = None,
        ephemeral: bool = False,
        fence: Fence | None = None,
    ) -> int:
        """Write and return the new version; VersionConflict, Fenced or CoordinationLost."""

    def delete(self, path: str, *, version: int | None = None, fence: Fence | None = None) -> bool:
        """Delete and say whether there was something; VersionConflict, Fenced."""

    def watch(self, prefix: str, on_change: Callable[[Change], None]) -> Callable[[], None]:
        """Deliver present entries and changes below `prefix`; returns a function that stops it."""

    def on_state(self, on_state: Callable[[StoreState], None]) -> None:
        """Call `on_state` with the present state and at each change of it."""

    def close(self) -> None:
        """End the session: its ephemeral entries vanish. No callback comes after it."""
