"""Every record crosses a process whole, and what is none is refused."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.placement import records
from stoker.placement.errors import BadRequest
from stoker.placement.records import (
    FunctionRecord,
    ImageRecord,
    InstanceRecord,
    LeaderRecord,
    NodeRecord,
    decode,
    encode,
)
from stoker.placement.store_rules import check_path

RECORDS = [
    kind
    for kind in vars(records).values()
    if dataclasses.is_dataclass(kind) and kind.__module__ == records.__name__
]

texts = st.text(max_size=20)
# JSON numbers beyond these are not exact everywhere.
integers = st.integers(-(2**53), 2**53)
floats = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | integers | floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
plain: dict[Any, st.SearchStrategy[Any]] = {
    str: texts,
    int: integers,
    float: floats,
    bool: st.booleans(),
    type(None): st.none(),
    Any: json_values,
}


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a type that a record's field may have."""
    if kind in plain:
        return plain[kind]
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return st.builds(kind, **{name: values_of(hint) for name, hint in hints.items()})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([values_of(argument) for argument in arguments])
    if origin is tuple:
        return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
    assert issubclass(origin, Mapping)
    return st.dictionaries(texts, values_of(arguments[1]), max_size=3)


@pytest.mark.parametrize("kind", RECORDS)
@given(data=st.data())
def test_a_record_is_decoded_as_it_was_encoded(kind: type, data: st.DataObject) -> None:
    record = data.draw(values_of(kind))
    assert decode(kind, encode(record)) == record


@pytest.mark.parametrize("kind", RECORDS)
@given(data=st.data(), name=texts, value=json_values)
def test_an_unknown_field_is_ignored(
    kind: type, data: st.DataObject, name: str, value: object
) -> None:
    record = data.draw(values_of(kind))
    fields = json.loads(encode(record))
    assert decode(kind, json.dumps({f"later_{name}": value, **fields}).encode()) == record


@pytest.mark.parametrize("kind", RECORDS)
@given(data=st.data())
def test_a_record_without_a_field_has_its_default_or_is_refused(
    kind: type, data: st.DataObject
) -> None:
    fields = json.loads(encode(data.draw(values_of(kind))))
    left_out = data.draw(st.sampled_from(dataclasses.fields(kind)))
    del fields[left_out.name]
    payload = json.dumps(fields).encode()
    if left_out.default is not dataclasses.MISSING:
        assert getattr(decode(kind, payload), left_out.name) == left_out.default
    elif left_out.default_factory is not dataclasses.MISSING:
        assert getattr(decode(kind, payload), left_out.name) == left_out.default_factory()
    else:
        with pytest.raises(BadRequest, match=f"Expected the field {kind.__name__}."):
            decode(kind, payload)


@pytest.mark.parametrize("kind", RECORDS)
@given(payload=st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()))
def test_what_is_no_record_is_refused(kind: type, payload: bytes) -> None:
    with pytest.raises(BadRequest, match=f"Expected a {kind.__name__}"):
        decode(kind, payload)


@pytest.mark.parametrize("kind", RECORDS)
@given(data=st.data(), value=json_values)
def test_any_value_in_a_field_is_taken_or_refused(
    kind: type, data: st.DataObject, value: object
) -> None:
    fields = json.loads(encode(data.draw(values_of(kind))))
    changed = data.draw(st.sampled_from(dataclasses.fields(kind))).name
    payload = json.dumps({**fields, changed: value}).encode()
    try:
        decoded = decode(kind, payload)
    except BadRequest:
        return
    assert decode(kind, encode(decoded)) == decoded


def test_another_encoding_version_is_refused() -> None:
    with pytest.raises(BadRequest, match=r"Expected a LeaderRecord of version 1, found version 2"):
        decode(LeaderRecord, b'{"v": 2, "leader_id": "a", "address": "b", "epoch": 1}')


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("cores", True, "int"),
        ("cores", 1.5, "int"),
        ("remote_bandwidth", True, "a number"),
        ("remote_bandwidth", "fast", "a number"),
        ("node_id", 7, "str"),
        ("spare_addresses", "host:1", "a list"),
        ("zygote_ready", 1, "bool"),
    ],
)
def test_a_field_of_another_type_is_refused_by_name(
    field: str, value: object, expected: str
) -> None:
    fields = json.loads(encode(NodeRecord("n", "h:1", 1, 2, 3, 4)))
    with pytest.raises(BadRequest, match=rf"Expected {expected} in NodeRecord\.{field}, found"):
        decode(NodeRecord, json.dumps({**fields, field: value}).encode())


def test_a_state_that_does_not_exist_is_refused() -> None:
    fields = json.loads(encode(InstanceRecord("i", "f.n", 1, "n", "h:1", "serving", 1, 0.0)))
    with pytest.raises(BadRequest, match=r"starting \| serving \| stopping \| failed"):
        decode(InstanceRecord, json.dumps({**fields, "state": "asleep"}).encode())


def test_records_lie_at_paths_that_a_store_takes() -> None:
    function = FunctionRecord("chat", "openfaas-fn", "registry/chat:1@sha256:ab")
    assert check_path(function.path) == "/functions/openfaas-fn/chat"
    assert function.key == "chat.openfaas-fn"
    check_path(ImageRecord.path_of(function.image))
