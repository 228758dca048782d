"""Errors that another of our processes answered with."""

from __future__ import annotations

import orjson

from stoker.placement.errors import StokerError


def wire_error(status: int, body: bytes, who: str) -> StokerError:
    """The error in an answer of ours; the root class when it is no such answer."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        fields = None
    error = fields.get("error") if isinstance(fields, dict) else None
    if isinstance(error, dict) and "code" in error:
        return StokerError.from_wire(error)
    return StokerError(f"Expected a typed answer of {who}, found status {status}.")
