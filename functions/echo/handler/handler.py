"""Answers with what it was sent."""

from __future__ import annotations

from typing import Any


def handle(event: Any, context: Any) -> dict[str, Any]:
    return {
        "statusCode": 200,
        "body": event.body,
        "headers": {"Content-Type": event.headers.get("Content-Type", "text/plain")},
    }
