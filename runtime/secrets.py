"""Reads functions' secrets from the store, in the agent."""

from __future__ import annotations

from typing import Protocol

from stoker.placement.errors import StartFailed
from stoker.placement.records import FunctionRecord, decode
from stoker.placement.secrets import Seal, SecretRecord, path_of
from stoker.placement.store import Entry
from stoker.runtime.secret_files import packed


class SecretStore(Protocol):
    def get(self, path: str) -> Entry | None: ...


class SecretReader:
    """`open` blocks."""

    def __init__(self, store: SecretStore, cluster_token: str) -> None:
        self._store = store
        self._seal = Seal(cluster_token)

    def open(self, function: FunctionRecord) -> int:
        """The descriptor of a memory file with the function's secrets; StartFailed."""
        return packed({name: self._value(function, name) for name in function.secrets})

    def _value(self, function: FunctionRecord, name: str) -> bytes:
        entry = self._store.get(path_of(function.namespace, name))
        if entry is None:
            raise StartFailed(
                f"Expected the secret {name} in {function.namespace} for {function.key}, found "
                "that it was deleted.",
                "Create it again, or deploy the function without it.",
            )
        return self._seal.open(decode(SecretRecord, entry.value))
