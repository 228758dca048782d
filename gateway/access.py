"""What a caller may do. Pure: every decision is made of a token's record and the request's words.

Who is not named here is refused: a route that nobody declared is for administrators alone, and a
path outside OPEN wants a token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from stoker.placement.errors import Forbidden, Unauthorized
from stoker.placement.names import DEFAULT_NAMESPACE
from stoker.placement.records import FunctionRecord
from stoker.placement.token_record import TokenRecord

# The value of the annotation and of the setting that close what OpenFaaS leaves open.
AUTH_KEY = "stoker/auth"
TOKEN_WANTED = "token"  # noqa: S105 - says that one is wanted

# Open to everybody, as OpenFaaS' contract says; below these nothing else may be served. A method
# names what alone is open.
OPEN_PREFIXES = (("/function/", ""), ("/async-function/", "POST"))
OPEN_PATHS = ("/healthz",)
# Every token may read these.
_FOR_ANY_TOKEN = ("/system/info", "/openapi.json")
# About the functions of one namespace; `name` is a function, wherever else one may stand too.
_SCOPED = re.compile(
    r"/system/(?:functions|logs|secrets|(?:function|scale-function|evict-function)/(?P<name>[^/]+))"
)
# Where a client may state a function; what a secret is called stands in `name`.
_FUNCTION_FIELDS = ("service", "serviceName", "functionName")
_READING = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True, slots=True)
class Stated:
    """The namespaces and functions that a control request names, wherever it does."""

    namespaces: frozenset[str]
    functions: frozenset[str]


def is_open(method: str, path: str) -> bool:
    """Whether the gateway asks nobody who he is."""
    below = any(path.startswith(p) and m in ("", method) for p, m in OPEN_PREFIXES)
    return below or path in OPEN_PATHS


def unauthorized() -> Unauthorized:
    return Unauthorized("invalid credentials")


def check_invoke(
    caller: TokenRecord | None, function: FunctionRecord, *, token_wanted: bool
) -> None:
    """Unauthorized or Forbidden if the caller may not call the function.

    `token_wanted` is what the route or the gateway's setting says; the function may want one too.
    """
    if not token_wanted and function.annotations.get(AUTH_KEY) != TOKEN_WANTED:
        return
    if caller is None:
        raise unauthorized()
    if not caller.covers(function.namespace, function.name):
        raise Forbidden(
            f"Expected a token for {function.key}, found the token {caller.token_id}, which is for "
            f"{scope_in_words(caller)}.",
            "Use another token.",
        )


def check_control(
    caller: TokenRecord, method: str, path: str, query: Mapping[str, Sequence[str]], body: bytes
) -> None:
    """Forbidden if the caller may not send this request to the control plane.

    What it names must all lie in the token's scope: two places that disagree are refused, so it
    does not matter which of them a route would believe.
    """
    if caller.administers or path in _FOR_ANY_TOKEN:
        return
    matched = _SCOPED.fullmatch(path)
    if caller.permission == "manage" and matched is not None:
        said = stated(method, path, query, body)
        namespaces_match = said.namespaces == {caller.namespace}
        whole = caller.scope == "namespace"
        # Secrets are the namespace's: a function that names one reads it.
        of_its_own = said.functions == {caller.function} and not _object(body).get("secrets")
        if namespaces_match and (whole or of_its_own):
            return
    raise Forbidden(
        f"Expected a token that may do this, found the token {caller.token_id}, which may "
        f"{caller.permission} {scope_in_words(caller)}.",
        "Use another token, or name the namespace of this one. Secrets want one of the namespace.",
    )


def stated(method: str, path: str, query: Mapping[str, Sequence[str]], body: bytes) -> Stated:
    """Every namespace and function that the request names; the default namespace if it names none.

    A body counts where a route would read one. What is no text cannot lie in any scope.
    """
    matched = _SCOPED.fullmatch(path)
    fields = {} if method in _READING else _object(body)
    named = [matched["name"]] if matched is not None and matched["name"] else []
    if path == "/system/logs":
        named += query.get("name", ())
    named += [str(fields[key]) for key in _FUNCTION_FIELDS if fields.get(key)]
    namespaces = {namespace for namespace in query.get("namespace", ()) if namespace}
    if fields.get("namespace"):
        namespaces.add(str(fields["namespace"]))
    functions = set()
    for name in named:
        plain, dot, namespace = name.rpartition(".")
        functions.add(plain if dot else name)
        if dot:
            namespaces.add(namespace)
    return Stated(frozenset(namespaces or {DEFAULT_NAMESPACE}), frozenset(functions))


def scope_in_words(token: TokenRecord) -> str:
    """`everything`, `namespace team` or `function f.team`."""
    if token.scope == "admin":
        return "everything"
    if token.scope == "namespace":
        return f"namespace {token.namespace}"
    return f"function {token.function}.{token.namespace}"


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
