"""What tests of a store share: a kit that opens sessions, and what a watch told."""

from __future__ import annotations

from typing import Protocol

from stoker.placement.store import Change, Entry, Store


class Kit(Protocol):
    name: str
    url: str

    def open(self) -> Store: ...


class Seen:
    """What a watch told: every change, and the values that are there now."""

    def __init__(self) -> None:
        self.changes: list[Change] = []

    def __call__(self, change: Change) -> None:
        self.changes.append(change)

    @property
    def now(self) -> dict[str, bytes]:
        values: dict[str, bytes] = {}
        for change in self.changes:
            if change.entry is None:
                values.pop(change.path, None)
            else:
                values[change.path] = change.entry.value
        return values


def values(entries: tuple[Entry, ...]) -> dict[str, bytes]:
    return {entry.path: entry.value for entry in entries}
