"""Which scale requests were carried out: written down by the leader, so that one that comes between
two leaders is not lost, and none is carried out again by the next.

`/requests/<namespace>/<name>` is the version of the function's record whose request was seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from stoker.placement.store import Entry, Fence
from stoker.placement.view import Snapshot

FOLDER = "/requests"


class RequestStore(Protocol):
    def list(self, prefix: str) -> tuple[Entry, ...]: ...

    def put(
        self,
        path: str,
        value: bytes,
        *,
        version: int | None = None,
        ephemeral: bool = False,
        fence: Fence | None = None,
    ) -> int: ...

    def delete(
        self, path: str, *, version: int | None = None, fence: Fence | None = None
    ) -> bool: ...


class ScaleRequests:
    """Belongs to the controller, whose lock guards it."""

    def __init__(self, store: RequestStore) -> None:
        self._store = store
        self._done: dict[str, int] = {}

    def known(self) -> frozenset[str]:
        """The functions of which a request was noted, deleted ones too."""
        return frozenset(self._done)

    def take_over(self, snapshot: Snapshot) -> dict[str, int]:
        """The versions of all functions but those whose request nobody has carried out yet."""
        entries = self._store.list(FOLDER)
        self._done = {_key(e.path): int(e.value) for e in entries if e.value.isdigit()}
        return {
            key: version
            for key, version in snapshot.function_versions.items()
            if snapshot.functions[key].replicas_requested is None
            or self._done.get(key) == version
            # Who failed to start it had seen the request.
            or (key in snapshot.failures and snapshot.failures[key].function_version == version)
        }

    def note(self, requests: Mapping[str, int | None], fence: Fence) -> None:
        """These requests are carried out now; None for a function that has none, or is gone."""
        for key, version in requests.items():
            if self._done.get(key) == version:
                continue
            if version is None:
                self._store.delete(_path(key), fence=fence)
                del self._done[key]
            else:
                self._store.put(_path(key), b"%d" % version, fence=fence)
                self._done[key] = version


def _path(key: str) -> str:
    name, _, namespace = key.rpartition(".")
    return f"{FOLDER}/{namespace}/{name}"


def _key(path: str) -> str:
    namespace, _, name = path.removeprefix(FOLDER + "/").partition("/")
    return f"{name}.{namespace}"
