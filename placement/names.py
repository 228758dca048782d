"""What names may look like, checked once, at the edge: they become paths, labels and addresses."""

from __future__ import annotations

import re

from stoker.placement.errors import BadRequest

DEFAULT_NAMESPACE = "openfaas-fn"
NAME_LENGTH_MAXIMUM = 63

_FUNCTION = re.compile(r"[a-zA-Z0-9](?:[-_a-zA-Z0-9]{0,61}[a-zA-Z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_SECRET = re.compile(r"[a-zA-Z0-9](?:[-_.a-zA-Z0-9]{0,61}[a-zA-Z0-9])?")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def valid_function_name(value: object) -> str:
    """`value` if it may name a function (no dot: that is where the namespace begins)."""
    return _valid(
        value,
        _FUNCTION,
        "a function name",
        "letters, digits, '-' and '_' between letters or digits",
    )


def valid_namespace(value: object) -> str:
    """`value` if it may name a namespace."""
    return _valid(
        value, _NAMESPACE, "a namespace", "small letters, digits and '-' between letters or digits"
    )


def valid_secret_name(value: object) -> str:
    """`value` if it may name a secret; it becomes a file name."""
    return _valid(
        value,
        _SECRET,
        "a secret name",
        "letters, digits, '-', '_' and '.' between letters or digits",
    )


def valid_node_id(value: object) -> str:
    """`value` if it may name a node; it becomes a path component in the store."""
    return _valid(
        value, _SECRET, "a node id", "letters, digits, '-', '_' and '.' between letters or digits"
    )


def valid_zone(value: object) -> str:
    """`value` if it may name a zone, or is empty: then nobody knows which one."""
    alphabet = "letters, digits, '-', '_' and '.' between letters or digits"
    return "" if value == "" else _valid(value, _SECRET, "a zone", alphabet)


def valid_digest(value: object) -> str:
    """`value` if it is the 64 small hex digits of a SHA-256."""
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return value
    raise BadRequest(f"Expected a digest of 64 small hex digits, found {value!r:.100}.")


def split_function_name(text: str) -> tuple[str, str]:
    """Name and namespace of `name` or `name.namespace`: the namespace follows the last dot."""
    name, dot, namespace = text.rpartition(".")
    if not dot:
        return valid_function_name(text), DEFAULT_NAMESPACE
    return valid_function_name(name), valid_namespace(namespace)


def _valid(value: object, pattern: re.Pattern[str], noun: str, alphabet: str) -> str:
    if isinstance(value, str) and pattern.fullmatch(value):
        return value
    raise BadRequest(
        f"Expected {noun} of 1 to {NAME_LENGTH_MAXIMUM} characters, found {value!r:.100}.",
        f"Use {alphabet}.",
    )
