"""CloudEvents in the three modes of HTTP: what is read, what is written, what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.placement.cloud_event import (
    BATCH_EVENTS_MAXIMUM,
    STRUCTURED_TYPE,
    CloudEvent,
    binary_headers,
    mode_of,
    read_batch,
    read_event,
    to_json,
    to_json_batch,
)
from stoker.placement.errors import BadRequest, PayloadTooLarge

REQUIRED = {"id": "7", "source": "/orders", "type": "order.made", "specversion": "1.0"}
BINARY = tuple((f"ce-{name}", value) for name, value in REQUIRED.items())
STRUCTURED = (("content-type", STRUCTURED_TYPE),)


def structured(**fields: Any) -> CloudEvent:
    return read_event(STRUCTURED, json.dumps(REQUIRED | fields).encode())


@pytest.mark.parametrize(
    ("headers", "mode"),
    [
        ((("content-type", "application/cloudevents+json; charset=utf-8"),), "structured"),
        ((("content-type", "Application/CloudEvents+JSON"),), "structured"),
        ((("content-type", "application/cloudevents"),), "structured"),
        ((("content-type", "APPLICATION/CLOUDEVENTS-BATCH+json"),), "batch"),
        ((*BINARY, ("content-type", "application/json")), "binary"),
        ((*BINARY, ("content-type", "application/cloudevents+json")), "structured"),
        (BINARY[1:], None),
        ((("content-type", "application/json"),), None),
    ],
)
def test_the_content_type_tells_the_mode_and_else_all_four_headers_do(
    headers: tuple[tuple[str, str], ...], mode: str | None
) -> None:
    assert mode_of(headers) == mode


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        ("100%2525", "100%25"),
        ("a%zz%", "a%zz%"),
        ('"two \\"words\\"%21"', 'two "words"!'),
        ("Euro €".encode().decode("latin-1"), "Euro €"),
        ("a%2fb%2Fc", "a/b/c"),
    ],
)
def test_a_header_is_decoded_exactly_once(header: str, value: str) -> None:
    event = read_event((*BINARY, ("ce-subject", header)), b"data")

    assert event.attributes["subject"] == value
    assert (event.data, event.content_type) == (b"data", "")


@pytest.mark.parametrize("header", ["%FF", "%C0%A0", "\xff", "%ED%A0%80", "a%0d%0ab"])
def test_what_is_no_utf_8_or_no_text_is_refused(header: str) -> None:
    with pytest.raises(BadRequest, match="subject"):
        read_event((*BINARY, ("ce-subject", header)), b"")


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1))
def test_every_text_survives_the_headers(text: str) -> None:
    headers = binary_headers(CloudEvent(REQUIRED | {"subject": text}, "text/plain", b"x"))

    assert all(value.isascii() and value.isprintable() for _, value in headers)
    assert read_event(headers, b"x") == CloudEvent(REQUIRED | {"subject": text}, "text/plain", b"x")


@pytest.mark.parametrize(
    ("fields", "content_type", "data"),
    [
        ({"data": {"n": 1}}, "application/json", b'{"n":1}'),
        ({"data": "text"}, "application/json", b'"text"'),
        ({"data": [2**70, "é", 0.1]}, "application/json", f'[{2**70},"é",0.1]'.encode()),
        ({"data": "<a/>", "datacontenttype": "text/xml"}, "text/xml", b"<a/>"),
        ({"data": [1], "datacontenttype": "application/x+json"}, "application/x+json", b"[1]"),
        ({"data_base64": "AAE="}, "", b"\x00\x01"),
        ({"data": None}, "", b""),
        ({}, "", b""),
        (
            {
                "specversion": "0.3",
                "data": "AAE=",
                "datacontentencoding": "base64",
                "datacontenttype": "image/png",
            },
            "image/png",
            b"\x00\x01",
        ),
    ],
)
def test_the_data_of_a_structured_event_is_what_its_body_would_be(
    fields: dict[str, Any], content_type: str, data: bytes
) -> None:
    event = structured(**fields)

    assert (event.content_type, event.data) == (content_type, data)


def test_extensions_are_texts_and_null_is_absent() -> None:
    event = structured(flag=True, count=3, subject=None)

    assert dict(event.attributes) == REQUIRED | {"flag": "true", "count": "3"}


@pytest.mark.parametrize(
    "fields",
    [
        {"id": ""},
        {"type": None},
        {"specversion": "2.0"},
        {"data": 1, "data_base64": "AAE="},
        {"data_base64": "no base64"},
        {"data_base64": 5},
        {"subject": {"deep": 1}},
        {"ratio": 0.5},
        {"bad name": "x"},
        {"subject": "line\nbreak"},
        {"subject": "\ud800"},
        {"data": ["\ud800"]},
        {"data": "\ud800", "datacontenttype": "text/plain"},
        {"data": float("nan")},
        {"data": float("inf")},
    ],
)
def test_a_structured_event_that_is_none_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="Expected"):
        structured(**fields)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b'{"id":"\xff"}', b"[" * 100_000])
def test_a_body_that_is_no_event_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        read_event(STRUCTURED, body)


@pytest.mark.parametrize("kind", ["application/cloudevents+avro", f"{STRUCTURED_TYPE};charset=x"])
def test_another_format_is_refused(kind: str) -> None:
    with pytest.raises(BadRequest, match="JSON in UTF-8"):
        read_event((("content-type", kind),), json.dumps(REQUIRED).encode())


def test_a_header_that_comes_twice_is_refused() -> None:
    with pytest.raises(BadRequest, match="twice"):
        read_event((*BINARY, ("ce-id", "8")), b"")


@pytest.mark.parametrize(
    ("content_type", "data", "expected"),
    [
        ("application/json", b'{"n":1.5}', {"data": {"n": 1.5}}),
        ("application/json", b"no json", {"data_base64": "bm8ganNvbg=="}),
        ("text/plain", "grün".encode(), {"data": "grün"}),
        ("text/plain", b"\xff", {"data_base64": "/w=="}),
        ("", b"x", {"data_base64": "eA=="}),
        ("application/json", b"", {}),
    ],
)
def test_an_event_as_json_keeps_its_data_readable_where_it_can(
    content_type: str, data: bytes, expected: dict[str, Any]
) -> None:
    event = CloudEvent(REQUIRED, content_type, data)
    kind = {"datacontenttype": content_type} if content_type else {}

    written = to_json(event)

    assert json.loads(written) == REQUIRED | kind | expected
    assert read_event(STRUCTURED, written) == event
    assert read_event(STRUCTURED, to_json(event, as_base64=True)) == event


def test_a_batch_is_a_list_of_events() -> None:
    headers = (("content-type", "application/cloudevents-batch+json"),)
    events = [CloudEvent(REQUIRED | {"id": str(n)}, "text/plain", b"x") for n in range(3)]

    assert read_batch(headers, to_json_batch(events)) == events
    assert read_batch(headers, b"[]") == []
    with pytest.raises(BadRequest, match="list"):
        read_batch(headers, json.dumps(REQUIRED).encode())
    with pytest.raises(PayloadTooLarge, match=f"{BATCH_EVENTS_MAXIMUM}"):
        read_batch(headers, json.dumps([REQUIRED] * (BATCH_EVENTS_MAXIMUM + 1)).encode())
