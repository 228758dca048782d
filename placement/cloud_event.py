"""CloudEvents in the three modes of HTTP: read from headers and body, and written back.

    batch        Content-Type begins with application/cloudevents-batch     a JSON list of events
    structured   Content-Type begins with application/cloudevents           one event as JSON
    binary       ce-id, ce-source, ce-type and ce-specversion are headers   the body is the data

Attributes in headers are percent-encoded. They are decoded exactly once, and refused where that
gives no UTF-8. Header names are lower-case, and values as HTTP has them: Latin-1.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn
from urllib.parse import quote, unquote_to_bytes

import orjson

from stoker.placement.errors import BadRequest, PayloadTooLarge

Mode = Literal["binary", "structured", "batch"]
Headers = Iterable[tuple[str, str]]

PREFIX = "ce-"
STRUCTURED_TYPE = "application/cloudevents+json"
BATCH_TYPE = "application/cloudevents-batch+json"
BATCH_EVENTS_MAXIMUM = 1000
_MEDIA_TYPE = "application/cloudevents"
_REQUIRED = ("id", "source", "type", "specversion")
_VERSIONS = ("1.0", "0.3")
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,256}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_PRINTABLE = "".join(c for c in string.printable if c.isprintable() and c not in ' "%')


@dataclass(frozen=True, slots=True)
class CloudEvent:
    """One event. `attributes` are all but datacontenttype, which is `content_type` ("" if none).

    `data` is what would be the body in binary mode.
    """

    attributes: Mapping[str, str]
    content_type: str = ""
    data: bytes = b""

    @property
    def id(self) -> str:
        return self.attributes["id"]

    @property
    def source(self) -> str:
        return self.attributes["source"]

    @property
    def type(self) -> str:
        return self.attributes["type"]


def mode_of(headers: Headers) -> Mode | None:
    """How a message with these headers carries events, None if it does not."""
    names = set()
    for name, value in headers:
        if name == "content-type":
            kind = value.strip().lower()
            if kind.startswith(f"{_MEDIA_TYPE}-batch"):
                return "batch"
            if kind.startswith(_MEDIA_TYPE):
                return "structured"
        names.add(name)
    return "binary" if all(PREFIX + name in names for name in _REQUIRED) else None


def read_event(headers: Headers, body: bytes) -> CloudEvent:
    """The one event of a message in binary or structured mode; BadRequest if it is none."""
    pairs = tuple(headers)
    if mode_of(pairs) == "structured":
        return _from_json(_json(pairs, body))
    attributes: dict[str, str] = {}
    for name, value in pairs:
        if not name.startswith(PREFIX):
            continue
        attribute = name.removeprefix(PREFIX)
        if attribute in attributes:
            _refuse(f"the header {name} once", "it twice")
        attributes[attribute] = _decoded(name, value)
    # It has a header of its own, and must have no other.
    attributes.pop("datacontenttype", None)
    content_type = next((value for name, value in pairs if name == "content-type"), "")
    return _checked(attributes, content_type, body)


def read_batch(headers: Headers, body: bytes) -> list[CloudEvent]:
    """The events of a message in batch mode; BadRequest, PayloadTooLarge for too many."""
    found = _json(tuple(headers), body)
    if not isinstance(found, list):
        _refuse("a list of events in the batch", type(found).__name__)
    if len(found) > BATCH_EVENTS_MAXIMUM:
        raise PayloadTooLarge(
            f"Expected at most {BATCH_EVENTS_MAXIMUM} events in a batch, found {len(found)}.",
            "Send them in several batches.",
        )
    return [_from_json(fields) for fields in found]


def binary_headers(event: CloudEvent) -> tuple[tuple[str, str], ...]:
    """The headers of binary mode, Content-Type among them if there is one."""
    pairs = tuple(
        (PREFIX + name.lower(), quote(value, safe=_PRINTABLE))
        for name, value in event.attributes.items()
    )
    return (*pairs, ("content-type", event.content_type)) if event.content_type else pairs


def to_json(event: CloudEvent, *, as_base64: bool = False) -> bytes:
    """The event as JSON. Its data is readable there where it can be, unless `as_base64`."""
    fields: dict[str, Any] = dict(event.attributes)
    if event.content_type:
        fields["datacontenttype"] = event.content_type
    if event.data:
        fields |= {} if as_base64 else _readable(event)
        if "data" not in fields:
            fields["data_base64"] = base64.b64encode(event.data).decode()
    return orjson.dumps(fields)


def to_json_batch(events: Iterable[CloudEvent]) -> bytes:
    """The events as the JSON list of batch mode."""
    return b"[" + b",".join(to_json(event) for event in events) + b"]"


def is_json(content_type: str) -> bool:
    """Whether a media type says JSON."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind.endswith(("/json", "+json"))


def _readable(event: CloudEvent) -> dict[str, Any]:
    try:
        if is_json(event.content_type):
            orjson.loads(event.data)
            return {"data": orjson.Fragment(event.data)}
        if event.content_type.lower().startswith("text/"):
            return {"data": event.data.decode()}
    except (orjson.JSONDecodeError, UnicodeDecodeError):
        pass
    return {}


def _json(headers: tuple[tuple[str, str], ...], body: bytes) -> Any:
    content_type = next(value for name, value in headers if name == "content-type")
    kind, *parameters = (part.strip().lower() for part in content_type.split(";"))
    charsets = [p.removeprefix("charset=").strip('"') for p in parameters if "charset=" in p]
    if ("+" in kind and not kind.endswith("+json")) or set(charsets) - {"utf-8", "us-ascii"}:
        _refuse("an event as JSON in UTF-8", f"{content_type!r:.100}")
    try:
        # Not orjson, which rounds large numbers: data is to leave as it came.
        return json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        _refuse("an event as JSON in UTF-8", f"{error}")


def _from_json(fields: Any) -> CloudEvent:
    if not isinstance(fields, dict):
        _refuse("an event as a JSON object", type(fields).__name__)
    data, encoded = fields.pop("data", None), fields.pop("data_base64", None)
    if data is not None and encoded is not None:
        _refuse("data or data_base64 in the event", "both")
    attributes = {
        name: _attribute(name, value) for name, value in fields.items() if value is not None
    }
    content_type, version = attributes.pop("datacontenttype", ""), attributes.get("specversion")
    encoding = attributes.pop("datacontentencoding", "") if version == "0.3" else ""
    if encoding.lower() == "base64":
        data, encoded = None, data
    if encoded is not None:
        return _checked(attributes, content_type, _from_base64(encoded))
    if data is None:
        return _checked(attributes, content_type, b"")
    is_text = isinstance(data, str) and content_type and not is_json(content_type)
    return _checked(attributes, content_type or "application/json", _bytes_of(data, is_text))


def _bytes_of(data: Any, is_text: object) -> bytes:
    try:
        if is_text:
            return str(data).encode()
        separators = (",", ":")
        return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=separators).encode()
    except (ValueError, RecursionError) as error:
        _refuse("data that JSON and UTF-8 can say", f"{error}")


def _attribute(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int):
        _refuse(f"a text, a whole number or a truth value at {name!r:.100}", type(value).__name__)
    return str(value)


def _from_base64(encoded: object) -> bytes:
    if not isinstance(encoded, str):
        _refuse("base64 as the event's data", f"{encoded!r:.60}")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        _refuse("base64 as the event's data", f"{encoded!r:.60}")


def _decoded(name: str, value: str) -> str:
    """A header's value as the attribute's."""
    text = value.strip(" \t")
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = re.sub(r"\\(.)", r"\1", text[1:-1])
    try:
        return unquote_to_bytes(text.encode("latin-1")).decode()
    except UnicodeError:
        _refuse(f"UTF-8, percent-encoded, in the header {name}", f"{value!r:.100}")


def _checked(attributes: dict[str, str], content_type: str, data: bytes) -> CloudEvent:
    for name in _REQUIRED:
        if not attributes.get(name):
            _refuse(f"the attribute {name} of the event", "none")
    if attributes["specversion"] not in _VERSIONS:
        _refuse(f"an event of version {_VERSIONS[0]}", f"{attributes['specversion']!r:.40}")
    for name, value in (*attributes.items(), ("datacontenttype", content_type)):
        if not _NAME.fullmatch(name):
            _refuse("letters and digits as the name of an attribute", f"{name!r:.100}")
        if _CONTROL.search(value) or not _encodable(value):
            _refuse(f"printable characters in the attribute {name}", f"{value!r:.100}")
    return CloudEvent(attributes, content_type, data)


def _encodable(value: str) -> bool:
    """Whether it is no half of a surrogate pair, which JSON can say and UTF-8 cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _refuse(expected: str, found: str) -> NoReturn:
    raise BadRequest(
        f"Expected {expected}, found {found}.", "Send a CloudEvent as its HTTP binding has it."
    )
