"""What the control routes do with tokens: make, list, revoke. Blocking code.

A token is told once, to who asked for it; the store gets its hash.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol, get_args

from stoker.gateway.access import scope_in_words
from stoker.gateway.auth import digest_of, new_token
from stoker.placement.errors import BadRequest, Conflict, NotFound
from stoker.placement.names import valid_function_name, valid_namespace
from stoker.placement.records import encode
from stoker.placement.request_limits import limits_of_json
from stoker.placement.spec import timestamp
from stoker.placement.store import ABSENT, Change, Entry
from stoker.placement.token_record import Permission, Scope, TokenRecord

# Every gateway holds all of them in memory.
TOKENS_MAXIMUM = 10_000
NAME_CHARACTERS_MAXIMUM = 100


class TokenStore(Protocol):
    """What this module needs of the store."""

    def put(self, path: str, value: bytes, *, version: int | None = None) -> int: ...

    def delete(self, path: str, *, version: int | None = None) -> bool: ...


class Tokens:
    """`known` are those of the present snapshot, `apply` puts one's own write into it at once."""

    def __init__(
        self,
        store: TokenStore,
        known: Callable[[], Mapping[str, TokenRecord]],
        apply: Callable[[Change], None],
    ) -> None:
        self._store = store
        self._known = known
        self._apply = apply

    def create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make a token; what is told of it, itself included. BadRequest, Conflict."""
        if len(self._known()) >= TOKENS_MAXIMUM:
            raise Conflict(
                f"Expected less than {TOKENS_MAXIMUM} tokens, found {len(self._known())}.",
                "Revoke those that nobody uses.",
            )
        token_id, token = new_token()
        record = _record(token_id, digest_of(token), body)
        value = encode(record)
        version = self._store.put(record.path, value, version=ABSENT)
        self._apply(Change(record.path, Entry(record.path, value, version)))
        return {**_told(record), "token": token}

    def list_all(self) -> list[dict[str, Any]]:
        """Every token without its value, oldest first."""
        return [_told(r) for r in sorted(self._known().values(), key=lambda r: r.created_at)]

    def revoke(self, token_id: str) -> None:
        """Refuse it from now on; NotFound. Other gateways hear of it by their watch."""
        record = self._known().get(token_id)
        if record is None or not self._store.delete(record.path):
            raise NotFound(
                f"Expected the id of a token, found {token_id!r:.40}.",
                "GET /system/tokens lists them.",
            )
        self._apply(Change(record.path, None))


def _record(token_id: str, digest: str, body: Mapping[str, Any]) -> TokenRecord:
    name, scope = body.get("name", ""), _word(body, "scope", get_args(Scope))
    permission = _word({"permission": "invoke", **body}, "permission", get_args(Permission))
    text = isinstance(name, str) and len(name) <= NAME_CHARACTERS_MAXIMUM and name.isprintable()
    if not text:
        _refuse("name", f"a printable text of at most {NAME_CHARACTERS_MAXIMUM} characters", name)
    wanted = {"admin": (), "namespace": ("namespace",), "function": ("namespace", "function")}
    for key in ("namespace", "function"):
        if (key in body) != (key in wanted[scope]):
            expected = f"{key} where the scope is not {scope}"
            _refuse(key, f"a {key}" if key in wanted[scope] else expected, body.get(key))
    return TokenRecord(
        token_id=token_id,
        name=name,
        digest=digest,
        scope=scope,
        permission=permission,
        namespace=valid_namespace(body["namespace"]) if "namespace" in body else "",
        function=valid_function_name(body["function"]) if "function" in body else "",
        limits=limits_of_json(body.get("limits")),
        created_at=time.time(),
    )


def _word(body: Mapping[str, Any], key: str, known: tuple[Any, ...]) -> Any:
    if body.get(key) not in known:
        _refuse(key, " or ".join(known), body.get(key))
    return body[key]


def _told(record: TokenRecord) -> dict[str, Any]:
    limits = record.limits
    told: dict[str, Any] = {
        "id": record.token_id,
        "name": record.name,
        "scope": record.scope,
        "permission": record.permission,
        "covers": scope_in_words(record),
        "createdAt": timestamp(record.created_at),
    }
    optional = {
        "namespace": record.namespace,
        "function": record.function,
        "limits": {
            key: value
            for key, value in (
                ("requestsPerSecond", limits.requests_per_second),
                ("concurrency", limits.concurrency),
            )
            if value is not None
        },
    }
    return told | {key: value for key, value in optional.items() if value}


def _refuse(key: str, expected: str, found: object) -> NoReturn:
    raise BadRequest(f"Expected {expected} at {key}, found {found!r:.100}.", f"Correct {key}.")
