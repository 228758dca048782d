"""A function: `handle` is called once per request."""

from __future__ import annotations

from typing import Any


def handle(event: Any, context: Any) -> dict[str, Any]:
    """Answer the request in `event`: body (bytes), headers, method, query, path."""
    greeting = f"Hello from {context.hostname}: {len(event.body)} bytes came by {event.method}.\n"
    return {"statusCode": 200, "body": greeting}
