from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from stoker.native import HeaderError, header_bytes, parse_header, parse_metadata


def safetensors(header: dict[str, Any] | bytes, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_a_header_gives_tensors_and_metadata() -> None:
    file = safetensors(
        {
            "__metadata__": {"format": "pt", "ключ": "é"},
            "z": entry("F32", [2, 1], 0, 8),
            "a": entry("I8", [], 8, 9),
            "empty": entry("BF16", [0, 3], 9, 9),
        },
        bytes(9),
    )
    assert parse_header(file, len(file)) == [
        ("z", "F32", (2, 1), 0, 8),
        ("a", "I8", (), 8, 9),
        ("empty", "BF16", (0, 3), 9, 9),
    ]
    assert parse_metadata(file, len(file)) == {"format": "pt", "ключ": "é"}
    assert header_bytes(file[:8], len(file)) == len(file) - 9


ONE = entry("U8", [1], 0, 1)


FAULTS: list[tuple[str, bytes]] = [
    ("short_file", b"1234567"),
    ("header_length", b"\xff" * 8),
    ("header_length", struct.pack("<Q", 100_000_001)),
    ("beyond_file", struct.pack("<Q", 3) + b"{}"),
    ("json", safetensors(b"")),
    ("json", safetensors(b"[]")),
    ("field", safetensors(b'{"a":' * 100_000)),
    ("json", safetensors(b"[" * 100_000)),
    ("json", safetensors(b"{}\0")),
    ("json", safetensors({"a": entry("U8", [-1], 0, 1)}, b"x")),
    ("json", safetensors({"a": {**ONE, "shape": [1.5]}}, b"x")),
    ("json", safetensors({"a": {**ONE, "shape": [2**64]}}, b"x")),
    ("json", safetensors({"__metadata__": {"a": 1}})),
    ("json", safetensors({"__metadata__": {"a": {"b": "c"}}})),
    ("utf8", safetensors(b'{"\xff":{}}')),
    ("utf8", safetensors(b'{"\xc0\xaf":{}}')),
    ("utf8", safetensors(b'{"\xed\xa0\x80":{}}')),
    ("utf8", safetensors(b'{"\\ud800":{}}')),
    ("duplicate_key", safetensors(b'{"__metadata__":{},"__metadata__":{}}')),
    ("field", safetensors({"a": {"dtype": "U8", "shape": [1]}}, b"x")),
    ("field", safetensors({"a": {**ONE, "more": 1}}, b"x")),
    ("dtype", safetensors({"a": entry("U7", [1], 0, 1)}, b"x")),
    ("shape", safetensors({"a": entry("U8", [2**32, 2**32], 0, 1)}, b"x")),
    ("shape", safetensors({"a": entry("F4", [3], 0, 1)}, b"x")),
    ("offsets", safetensors({"a": entry("F32", [1], 0, 3)}, b"xxx")),
    ("offsets", safetensors({"a": entry("U8", [0], 1, 0)}, b"x")),
    ("beyond_file", safetensors({"a": entry("U8", [2], 0, 2)}, b"x")),
    ("hole", safetensors({"a": entry("U8", [1], 1, 2)}, b"xx")),
    ("overlap", safetensors({"a": entry("U8", [2], 0, 2), "b": entry("U8", [1], 1, 2)}, b"xx")),
    ("trailing_bytes", safetensors({"a": ONE}, b"xy")),
]


@pytest.mark.parametrize(("kind", "file"), FAULTS, ids=range(len(FAULTS)))
def test_a_fault_of_the_header_has_a_kind_and_a_place(kind: str, file: bytes) -> None:
    with pytest.raises(HeaderError) as caught:
        parse_header(file, len(file))
    assert isinstance(caught.value, ValueError)
    assert caught.value.kind == kind
    assert 0 <= caught.value.offset <= len(file)


def test_a_part_of_a_header_is_told_from_a_wrong_one() -> None:
    file = safetensors({"a": ONE}, b"x")
    with pytest.raises(HeaderError) as caught:
        parse_header(file[:20], len(file))
    assert (caught.value.kind, caught.value.offset) == ("truncated", 20)


def test_two_equal_names_are_refused_whatever_their_escapes() -> None:
    one = json.dumps(ONE).encode()
    two = json.dumps(entry("U8", [1], 1, 2)).encode()
    file = safetensors(b'{"a":' + one + b',"\\u0061":' + two + b"}", b"xx")
    with pytest.raises(HeaderError) as caught:
        parse_header(file, len(file))
    assert caught.value.kind == "duplicate_key"


def test_a_million_tensors_are_refused_early() -> None:
    text = ",".join(
        f'"{index}":{{"dtype":"U8","shape":[1],"data_offsets":[{index},{index + 1}]}}'
        for index in range(1_000_000)
    )
    file = safetensors(b"{" + text.encode() + b"}", bytes(1_000_000))
    with pytest.raises(HeaderError) as caught:
        parse_header(file, len(file))
    assert caught.value.kind == "too_many_tensors"
    # A fifth was read: the rest of the text lies behind the place of the error.
    assert caught.value.offset < len(file) / 4
