"""Builds the value of an annotated type from decoded JSON."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from stoker.placement.errors import BadRequest


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def build(kind: Any, value: Any, where: str) -> Any:
    """`value` as a `kind`; BadRequest, naming the place below `where`, if it is none."""
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(typing.cast(type, kind), value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return build(next(a for a in arguments if a is not type(None)), value, where)
    if origin is Literal:
        return _expect(value in arguments, value, where, " | ".join(map(str, arguments)))
    if origin is tuple:
        _expect(isinstance(value, list), value, where, "a list")
        return tuple(build(arguments[0], item, where) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        _expect(isinstance(value, dict), value, where, "an object")
        return {key: build(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(_expect(number, value, where, "a number"))
    exact = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    return _expect(exact, value, where, kind.__name__)


def _build_dataclass(cls: type, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), value, where, "an object")
    known = {}
    for f in dataclasses.fields(cls):
        if f.name in value:
            known[f.name] = build(_hints(cls)[f.name], value[f.name], f"{where}.{f.name}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise BadRequest(f"Expected the field {where}.{f.name}, found none.")
    return cls(**known)


def _expect(holds: bool, value: Any, where: str, expected: str) -> Any:
    if not holds:
        raise BadRequest(f"Expected {expected} in {where}, found {value!r:.80}.")
    return value
