"""What the three stores share: which calls are right, who wins a write, what a watcher is told.

A path is `/segment/segment…`; a segment has letters, digits and `. _ : @ = + -`, at most 255.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import structlog

from stoker.placement.errors import (
    BadRequest,
    CoordinationLost,
    Fenced,
    PayloadTooLarge,
    VersionConflict,
)
from stoker.placement.store import ABSENT, VALUE_BYTES_MAX, Change, Entry, Fence, StoreState

# How long any call of a store may take before it is CoordinationLost.
CALL_SECONDS_MAX = 10.0
CHROOT_DEFAULT = "/stoker"  # of a ZooKeeper URL that names none
PATH_CHARACTERS_MAX = 1024

_SEGMENT = re.compile(r"[A-Za-z0-9._:@=+-]{1,255}")
_log = structlog.get_logger()


def check_path(path: str) -> str:
    """The path itself; BadRequest if an entry cannot lie there."""
    segments = path.split("/")
    if (
        len(path) > PATH_CHARACTERS_MAX
        or len(segments) < 2
        or segments[0]
        or not all(_SEGMENT.fullmatch(s) and s not in (".", "..") for s in segments[1:])
    ):
        raise BadRequest(
            f"Expected a path such as /nodes/n1 in the store, found {path!r:.80}.",
            "Use letters, digits and any of . _ : @ = + - in each segment.",
        )
    return path


def check_prefix(prefix: str) -> str:
    """The prefix as every path below it starts: `/` or `/a/b/`; BadRequest if it is none."""
    return prefix if prefix == "/" else check_path(prefix.removesuffix("/")) + "/"


def check_version(version: int | None, least: int) -> None:
    if version is not None and version < least:
        raise BadRequest(f"Expected a version of at least {least}, found {version}.")


def check_fence_form(fence: Fence | None) -> None:
    if fence is not None:
        check_path(fence.path)
        check_version(fence.version, 0)


def check_put(path: str, value: bytes, version: int | None, fence: Fence | None) -> None:
    """BadRequest for what no store may take."""
    check_path(path)
    check_version(version, ABSENT)
    check_fence_form(fence)
    if len(value) > VALUE_BYTES_MAX:
        raise PayloadTooLarge(
            f"Expected at most {VALUE_BYTES_MAX} bytes at {path} in the store, found {len(value)}.",
            "Make the code archive or the record smaller.",
        )


def version_conflict(path: str, expected: int, found: int | None) -> VersionConflict:
    was = "none" if found is None else str(found)
    wanted = "none" if expected == ABSENT else str(expected)
    return VersionConflict(
        f"Expected version {wanted} of {path} in the store, found {was}.",
        "Read the entry again and decide anew.",
    )


def check_fence(fence: Fence, found: int | None) -> None:
    """Fenced, unless the version found at the fence's path is the fence's."""
    if found != fence.version:
        raise fenced(fence, "none" if found is None else f"version {found}")


def fenced(fence: Fence, found: str) -> Fenced:
    return Fenced(
        f"Expected version {fence.version} of the fence {fence.path}, found {found}.",
        "Stop deciding: another leader was elected.",
    )


def next_version(
    path: str, found: tuple[int, str | None] | None, expected: int | None, owner: str | None
) -> int:
    """The version of the entry that a write makes; VersionConflict if it must not be made.

    `found` is the present version and owner (the session of an ephemeral entry). A write that
    changes the owner makes the entry anew, from version 0.
    """
    if expected is not None:
        present = found[0] if found else None
        if present != (None if expected == ABSENT else expected):
            raise version_conflict(path, expected, present)
    return 0 if found is None or found[1] != owner else found[0] + 1


def closed_error() -> CoordinationLost:
    return CoordinationLost("The store was closed by its own process.", "Open it again.")


class Watcher:
    """One watch: remembers what it told, so that it tells only what differs.

    `stamp` grows with each write of a path. Not thread-safe: the store calls it from one thread at
    a time.
    """

    def __init__(self, prefix: str, on_change: Callable[[Change], None]) -> None:
        self.prefix = check_prefix(prefix)
        self.stopped = False
        self._on_change = on_change
        self._told: dict[str, int] = {}

    def covers(self, path: str) -> bool:
        return path.startswith(self.prefix)

    def told_in(self, folder: str) -> set[str]:
        """The present entries directly in a folder (which ends in /), as far as told."""
        return {path for path in self._told if path.rpartition("/")[0] + "/" == folder}

    def tell(self, path: str, entry: Entry | None, stamp: int) -> None:
        """The entry now at `path`, or None if there is none."""
        if self.stopped:
            return
        if entry is None:
            if self._told.pop(path, None) is None:
                return
        elif self._told.get(path, -1) >= stamp:
            return
        else:
            self._told[path] = stamp
        try:
            self._on_change(Change(path, entry))
        except Exception:  # noqa: BLE001 - a watcher's bug must not end the store's thread
            _log.exception("watch_callback_failed", path=path)

    def tell_all(self, entries: Mapping[str, tuple[Entry, int]]) -> None:
        """All that is now below the prefix, with its stamps: tells every difference."""
        for path in [path for path in self._told if path not in entries]:
            self.tell(path, None, 0)
        for path in sorted(entries):
            entry, stamp = entries[path]
            self.tell(path, entry, stamp)

    def stop(self) -> None:
        self.stopped = True


class StateListeners:
    """The present state of a store and who wants to know. Not thread-safe, as Watcher."""

    def __init__(self) -> None:
        self.state = StoreState.CONNECTED
        self._listeners: list[Callable[[StoreState], None]] = []

    def add(self, listener: Callable[[StoreState], None]) -> None:
        self._listeners.append(listener)
        self._call(listener)

    def enter(self, state: StoreState) -> None:
        if state is not self.state:
            self.state = state
            for listener in tuple(self._listeners):
                self._call(listener)

    def clear(self) -> None:
        self._listeners.clear()

    def _call(self, listener: Callable[[StoreState], None]) -> None:
        try:
            listener(self.state)
        except Exception:  # noqa: BLE001 - a listener's bug must not end the store's thread
            _log.exception("state_callback_failed", state=self.state.value)
