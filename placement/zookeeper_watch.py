"""How entries lie in ZooKeeper, and a recursive watch made of one-shot watches.

The entry `/a/b` is the znode `/a~/b`: what leads to an entry carries a `~`, which no entry has. So
an entry never has children, a folder is never an entry, and ZooKeeper's versions are ours. Folders
are named here by what their entries start with: `/` or `/a/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from stoker.placement.store import Change, Entry
from stoker.placement.store_rules import Watcher

_MARK = "~"


class Reader(Protocol):
    """Reads znodes and, when `watched`, asks to be told of the next change of each.

    All raise CoordinationLost.
    """

    def children(self, folders: Sequence[str], *, watched: bool) -> Sequence[Sequence[str] | None]:
        """The names in each folder; None if there is no such folder."""

    def entries(self, paths: Sequence[str], *, watched: bool) -> Sequence[tuple[Entry, int] | None]:
        """Each entry and its stamp; None if there is no such entry."""


def entry_znode(path: str) -> str:
    """`/a/b` is `/a~/b`."""
    folder, _, name = path.rpartition("/")
    return f"{folder_znode(folder + '/')}/{name}"


def folder_znode(folder: str) -> str:
    """`/a/b/` is `/a~/b~`, and `/` is the empty path."""
    return folder[:-1].replace("/", _MARK + "/")[1:] + _MARK if folder != "/" else ""


def of_znode(znode: str) -> str:
    """The path of an entry, or the folder (which ends in /), whose znode this is."""
    path = znode.replace(_MARK + "/", "/")
    return path[: -len(_MARK)] + "/" if path.endswith(_MARK) else path or "/"


def walk(
    reader: Reader, folder: str, *, watched: bool
) -> tuple[dict[str, tuple[Entry, int]], set[str]]:
    """Every entry below the folder with its stamp, and every folder, that one included."""
    found: dict[str, tuple[Entry, int]] = {}
    seen: set[str] = set()
    level = [folder]
    while level:
        below: list[str] = []
        paths: list[str] = []
        for parent, names in zip(level, reader.children(level, watched=watched), strict=True):
            if names is not None:
                seen.add(parent)
                folders, entries = _sorted_out(parent, names)
                below += folders
                paths += entries
        read = zip(paths, reader.entries(paths, watched=watched), strict=True)
        found |= {path: entry for path, entry in read if entry is not None}
        level = below
    return found, seen


class TreeWatch:
    """One watch of all below a prefix. Belongs to one thread.

    `stale` while it may have missed something; `refresh_all` then reads everything again.
    """

    def __init__(self, prefix: str, on_change: Callable[[Change], None], reader: Reader) -> None:
        self.watcher = Watcher(prefix, on_change)
        self.stale = True
        self._reader = reader
        self._folders: set[str] = set()

    def refresh_all(self) -> None:
        found, self._folders = walk(self._reader, self.watcher.prefix, watched=True)
        self.stale = False
        self.watcher.tell_all(found)

    def refresh(self, changed: Iterable[str]) -> None:
        """Read again the entries and folders that a one-shot watch told of."""
        mine = [path for path in changed if path.startswith(self.watcher.prefix)]
        for folder in sorted(path for path in mine if path in self._folders):
            self._refresh_folder(folder)
        self._read([path for path in mine if not path.endswith("/")])

    def _refresh_folder(self, folder: str) -> None:
        (names,) = self._reader.children([folder], watched=True)
        if names is None:
            # Only a foreign hand removes a folder.
            self._folders = {known for known in self._folders if not known.startswith(folder)}
        folders, entries = _sorted_out(folder, names or [])
        told = self.watcher.told_in(folder)
        for path in sorted(told.difference(entries)):
            self.watcher.tell(path, None, 0)
        self._read([path for path in entries if path not in told])
        for below in folders:
            if below not in self._folders:
                found, seen = walk(self._reader, below, watched=True)
                self._folders |= seen
                for path in sorted(found):
                    self.watcher.tell(path, *found[path])

    def _read(self, paths: Sequence[str]) -> None:
        for path, found in zip(paths, self._reader.entries(paths, watched=True), strict=True):
            entry, stamp = found or (None, 0)
            self.watcher.tell(path, entry, stamp)


def _sorted_out(folder: str, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The folders and the entries among the names in a folder, in order."""
    folders = [folder + name[: -len(_MARK)] + "/" for name in names if name.endswith(_MARK)]
    entries = [folder + name for name in names if not name.endswith(_MARK)]
    return sorted(folders), sorted(entries)
