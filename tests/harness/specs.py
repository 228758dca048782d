"""Bodies of deployments, as clients send them."""

from __future__ import annotations

from typing import Any

from stoker.placement.records import Scaling
from stoker.placement.spec import parse_deployment

MODEL = {"stoker/model": "s3://models/chat"}


def deployment(**fields: Any) -> dict[str, Any]:
    return {"service": "chat", "image": "stoker/model:latest", **fields}


def model(**annotations: str) -> dict[str, Any]:
    named = {"stoker/" + key.replace("_", "-"): value for key, value in annotations.items()}
    return deployment(annotations={**MODEL, **named})


def scaling(labels: dict[str, str], *, annotations: dict[str, str] | None = None) -> Scaling:
    return parse_deployment(deployment(labels=labels, annotations=annotations)).scaling
