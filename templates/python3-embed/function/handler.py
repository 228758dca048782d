"""Says which of some texts is nearest in meaning to a question, by the function's own model."""

from __future__ import annotations

import json
from typing import Any

TEXTS_MAXIMUM = 100


def handle(event: Any, context: Any) -> dict[str, Any]:
    """The body is JSON: {"question": "…", "texts": ["…", …]}."""
    try:
        asked = json.loads(event.body)
        question, texts = str(asked["question"]), [str(text) for text in asked["texts"]]
    except (ValueError, KeyError, TypeError):
        return {"statusCode": 400, "body": 'Send {"question": "…", "texts": ["…", …]}.\n'}
    if not 0 < len(texts) <= TEXTS_MAXIMUM:
        return {"statusCode": 400, "body": f"Send 1 to {TEXTS_MAXIMUM} texts.\n"}
    wanted, *vectors = context.model.embed([question, *texts])
    scores = [sum(a * b for a, b in zip(wanted, vector, strict=True)) for vector in vectors]
    nearest = max(range(len(texts)), key=scores.__getitem__)
    return {"statusCode": 200, "body": {"nearest": texts[nearest], "scores": scores}}
