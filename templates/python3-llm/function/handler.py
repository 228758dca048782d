"""Answers a question with the function's own model, token by token."""

from __future__ import annotations

from typing import Any

INSTRUCTIONS = "Answer in one or two sentences."


def handle(event: Any, context: Any) -> dict[str, Any]:
    """The body is the question; what `stream` yields leaves at once."""
    question = event.body.decode("utf-8", "replace").strip()
    if not question:
        return {"statusCode": 400, "body": "Send a question as the body.\n"}
    messages = [
        {"role": "system", "content": INSTRUCTIONS},
        {"role": "user", "content": question},
    ]
    return {
        "statusCode": 200,
        "headers": {"Content-Type": "text/plain; charset=utf-8"},
        "body": context.model.stream(messages, max_tokens=200, temperature=0),
    }
