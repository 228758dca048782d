"""Reading a JSON object that a client sent; a refusal tells the position."""

from __future__ import annotations

from typing import Any

import orjson

from stoker.placement.errors import BadJson


def json_object(body: bytes) -> dict[str, Any]:
    """The object in `body`; BadJson with line, column and byte offset of what is wrong."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        offset = len(error.doc[: error.pos].encode("utf-8", "surrogatepass"))
        raise BadJson(
            f"Expected JSON, found an error at line {error.lineno} column {error.colno} "
            f"(byte {offset} of {len(body)}): {error.msg}.",
            "Correct the body.",
        ) from error
    if not isinstance(value, dict):
        raise BadJson(
            f"Expected a JSON object, found {type(value).__name__} at line 1 column 1 (byte 0).",
            "Send an object.",
        )
    return value
