"""What the control routes do with namespaces. Blocking code."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from stoker.placement.errors import BadRequest, Conflict, NotFound, VersionConflict
from stoker.placement.names import DEFAULT_NAMESPACE, valid_namespace
from stoker.placement.namespaces import NamespaceRecord, path_of
from stoker.placement.records import decode, encode
from stoker.placement.spec import timestamp
from stoker.placement.spec_fields import texts_field
from stoker.placement.store import ABSENT, Entry

RECORD_BYTES_MAXIMUM = 64 * 1024


class NamespaceStore(Protocol):
    """What this module needs of the store."""

    def get(self, path: str) -> Entry | None: ...

    def list(self, prefix: str) -> tuple[Entry, ...]: ...

    def put(self, path: str, value: bytes, *, version: int | None = None) -> int: ...

    def delete(self, path: str, *, version: int | None = None) -> bool: ...


class Namespaces:
    def __init__(self, store: NamespaceStore) -> None:
        self._store = store

    def names(self) -> list[str]:
        found = (entry.path.rpartition("/")[2] for entry in self._store.list("/namespaces"))
        return sorted({DEFAULT_NAMESPACE, *found})

    def describe(self, name: str) -> dict[str, Any]:
        record = self._find(name)[0]
        status: dict[str, Any] = {
            "name": record.name,
            "labels": dict(record.labels),
            "annotations": dict(record.annotations),
        }
        return status | ({"createdAt": timestamp(record.created_at)} if record.created_at else {})

    def create(self, body: Mapping[str, Any]) -> None:
        """Conflict if it exists."""
        record = _stated(NamespaceRecord(valid_namespace(body.get("name"))), body)
        if record.name == DEFAULT_NAMESPACE:
            raise _taken(record.name)
        try:
            self._put(replace(record, created_at=time.time()), ABSENT)
        except VersionConflict:
            raise _taken(record.name) from None

    def update(self, name: str, body: Mapping[str, Any]) -> None:
        """Replace the labels and annotations."""
        record, version = self._find(name)
        self._put(_stated(record, body), version)

    def remove(self, name: str) -> None:
        """NotFound; Conflict for the one that is always there, and while anything is in it.

        The record goes first: what is written into the namespace is fenced by it, so that nothing
        can come in after the look. It comes back if something is there.
        """
        record, version = self._find(name)
        if record.name == DEFAULT_NAMESPACE:
            raise Conflict(
                f"The namespace {DEFAULT_NAMESPACE} is where functions go that name no other one; "
                "it cannot be deleted.",
                "Remove its functions one by one.",
            )
        if not self._store.delete(record.path, version=version):
            raise _missing(name)
        nouns = ("functions", "secrets")
        inside = {noun: len(self._store.list(f"/{noun}/{record.name}")) for noun in nouns}
        if any(inside.values()):
            self._put(record, ABSENT)
            raise Conflict(
                f"Expected the namespace {record.name} to be empty, found "
                f"{inside['functions']} functions and {inside['secrets']} secrets in it.",
                "Remove them first.",
            )

    def _find(self, name: str) -> tuple[NamespaceRecord, int]:
        """The record and its version; NotFound."""
        entry = self._store.get(path_of(valid_namespace(name)))
        if entry is not None:
            return decode(NamespaceRecord, entry.value), entry.version
        if name == DEFAULT_NAMESPACE:
            return NamespaceRecord(name), ABSENT
        raise _missing(name)

    def _put(self, record: NamespaceRecord, version: int) -> None:
        value = encode(record)
        if len(value) > RECORD_BYTES_MAXIMUM:
            raise BadRequest(
                f"Expected a namespace of at most {RECORD_BYTES_MAXIMUM} bytes, "
                f"found {len(value)}.",
                "Shorten its labels and annotations.",
            )
        self._store.put(record.path, value, version=version)


def _stated(record: NamespaceRecord, body: Mapping[str, Any]) -> NamespaceRecord:
    labels, annotations = texts_field(body, "labels"), texts_field(body, "annotations")
    return replace(record, labels=labels or {}, annotations=annotations or {})


def _taken(name: str) -> Conflict:
    return Conflict(
        f"Expected a new name for a namespace, found that {name} exists.",
        "Update it, or choose another name.",
    )


def _missing(name: str) -> NotFound:
    return NotFound(
        f"Expected a namespace, found none called {name!r:.80}.",
        "GET /system/namespaces lists those that exist.",
    )
