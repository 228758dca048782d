"""Namespaces: `openfaas-fn` is always there, every other one has a record while it exists.

A write into a namespace is fenced by its record, so that none lands in one that was just deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from stoker.placement.errors import BadRequest
from stoker.placement.names import DEFAULT_NAMESPACE
from stoker.placement.store import Entry, Fence


@dataclass(frozen=True, slots=True)
class NamespaceRecord:
    """`created_at` is in seconds since the epoch."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    created_at: float = 0.0

    @property
    def path(self) -> str:
        return path_of(self.name)


class NamespaceStore(Protocol):
    def get(self, path: str) -> Entry | None: ...


def path_of(name: str) -> str:
    return f"/namespaces/{name}"


def fence_of(store: NamespaceStore, name: str) -> Fence | None:
    """What holds while the namespace exists, None for the one that always does.

    BadRequest if it does not exist now.
    """
    if name == DEFAULT_NAMESPACE:
        return None
    entry = store.get(path_of(name))
    if entry is None:
        raise unknown_namespace(name)
    return Fence(entry.path, entry.version)


def unknown_namespace(name: str) -> BadRequest:
    return BadRequest(
        f"Expected a namespace that exists, found none called {name!r:.80}.",
        "Create it first: `faas-cli namespace create`, or POST /system/namespace/.",
    )
