"""A function: `handle` is called once per request."""

from __future__ import annotations

from typing import Any


def handle(event: Any, context: Any) -> dict[str, Any]:
    """Answer the request in `event`: body, headers, method, query, path."""
    return {"statusCode": 200, "body": "Hello from Stoker!"}
