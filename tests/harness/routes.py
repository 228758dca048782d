"""The gateway's real route table: what Flask knows, and what is answered before it."""

from __future__ import annotations

import re
from typing import Any

from stoker.gateway.app import create_app
from stoker.gateway.gateway import PATHS, PREFIXES
from stoker.gateway.openapi import merged


class _Anything:
    """Stands for what routes would work with: only the table is looked at."""

    def __getattr__(self, name: str) -> Any:
        return self


def flask_routes() -> set[tuple[str, str]]:
    """(method, path as OpenAPI writes it) of every rule, HEAD and OPTIONS included."""
    control: Any = _Anything()
    return {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in create_app(control).url_map.iter_rules()
        for method in rule.methods or ()
    }


def documented_routes() -> set[tuple[str, str]]:
    return {
        (method.upper(), path)
        for path, item in merged()["paths"].items()
        for method in item
        if method != "parameters"
    }


def every_route() -> list[tuple[str, str]]:
    """Documented and real routes together, parameters filled in, and paths nobody serves."""
    known = flask_routes() | documented_routes()
    known |= {("GET", path) for path in PATHS}
    known |= {(method, f"{p}x") for p in PREFIXES for method in ("GET", "POST", "DELETE")}
    known |= {("GET", path) for path in ("/", "/nothing", "/system", "/system/nothing", "/v1")}
    return sorted({(method, re.sub(r"\{\w+\}", "x", path)) for method, path in known})
