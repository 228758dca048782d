"""What the control routes do with secrets. Blocking code; no value is ever told to anybody."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from stoker.placement.errors import BadRequest, Conflict, Fenced, NotFound, VersionConflict
from stoker.placement.names import DEFAULT_NAMESPACE, valid_namespace, valid_secret_name
from stoker.placement.namespaces import fence_of, unknown_namespace
from stoker.placement.records import encode
from stoker.placement.secrets import SECRET_BYTES_MAXIMUM, Seal, path_of
from stoker.placement.store import ABSENT, Entry, Fence


class SecretStore(Protocol):
    """What this module needs of the store."""

    def get(self, path: str) -> Entry | None: ...

    def list(self, prefix: str) -> tuple[Entry, ...]: ...

    def put(
        self, path: str, value: bytes, *, version: int | None = None, fence: Fence | None = None
    ) -> int: ...

    def delete(self, path: str) -> bool: ...


class Secrets:
    """`on_update` is told namespace and name of a secret that has another value from now on."""

    def __init__(
        self, store: SecretStore, cluster_token: str, on_update: Callable[[str, str], None]
    ) -> None:
        self._store = store
        self._seal = Seal(cluster_token)
        self._on_update = on_update

    def list_all(self, query_namespace: str) -> list[dict[str, str]]:
        """Names, never values."""
        namespace = valid_namespace(query_namespace or DEFAULT_NAMESPACE)
        found = self._store.list(f"/secrets/{namespace}")
        names = (entry.path.rpartition("/")[2] for entry in found)
        return [{"name": name, "namespace": namespace} for name in names]

    def create(self, body: Mapping[str, Any], query_namespace: str) -> None:
        """Conflict if it exists; BadRequest."""
        namespace, name = _place(body, query_namespace)
        sealed = encode(self._seal.close(namespace, name, _value(body)))
        fence = fence_of(self._store, namespace)
        try:
            self._store.put(path_of(namespace, name), sealed, version=ABSENT, fence=fence)
        except Fenced:
            raise unknown_namespace(namespace) from None
        except VersionConflict:
            raise Conflict(
                f"Expected a new name for a secret, found that {name} exists in {namespace}.",
                "Update it, or choose another name.",
            ) from None

    def update(self, body: Mapping[str, Any], query_namespace: str) -> None:
        """Give it another value, which every later call of a function that uses it sees.

        NotFound; VersionConflict if somebody else updates it at the same time.
        """
        namespace, name = _place(body, query_namespace)
        entry = self._store.get(path_of(namespace, name))
        if entry is None:
            raise _missing(namespace, name)
        sealed = encode(self._seal.close(namespace, name, _value(body)))
        self._store.put(entry.path, sealed, version=entry.version)
        self._on_update(namespace, name)

    def remove(self, body: Mapping[str, Any], query_namespace: str) -> None:
        """NotFound. Instances that have it keep it; no other one starts without it."""
        namespace, name = _place(body, query_namespace)
        if not self._store.delete(path_of(namespace, name)):
            raise _missing(namespace, name)


def _place(body: Mapping[str, Any], query_namespace: str) -> tuple[str, str]:
    namespace = body.get("namespace") or query_namespace or DEFAULT_NAMESPACE
    return valid_namespace(namespace), valid_secret_name(body.get("name"))


def _value(body: Mapping[str, Any]) -> bytes:
    """`rawValue` wins: beside it, `value` may be what was left of binary data as a text."""
    raw, text = body.get("rawValue"), body.get("value")
    try:
        if isinstance(raw, str) and raw:
            value = base64.b64decode(raw, validate=True)
        elif isinstance(text, str) and not raw:
            value = text.encode()
        else:
            raise BadRequest(
                "Expected a text as value or base64 as rawValue, found neither.", "Give one."
            )
    except (binascii.Error, ValueError):
        # Without its cause: that would show the value in a traceback.
        raise BadRequest("Expected base64 as rawValue, found something else.") from None
    if len(value) > SECRET_BYTES_MAXIMUM:
        raise BadRequest(
            f"Expected a secret of at most {SECRET_BYTES_MAXIMUM} bytes, found {len(value)}.",
            "Keep large data in object storage, and the key to it as the secret.",
        )
    return value


def _missing(namespace: str, name: str) -> NotFound:
    return NotFound(
        f"Expected a secret, found none called {name} in {namespace}.",
        "GET /system/secrets lists those that exist.",
    )
