"""A function: `handle` is called once per request."""

from __future__ import annotations

from typing import Any


def handle(event: Any, context: Any) -> dict[str, Any]:
    """Answer the request in `event`: body (bytes), headers, method, query, path."""
    if context.model is None:
        size = len(event.body)
        answer = f"Hello from {context.hostname}: {size} bytes came by {event.method}.\n"
    else:
        answer = context.model.generate(event.body.decode(), max_tokens=100)
    return {"statusCode": 200, "body": answer}
