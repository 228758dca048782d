"""A function for Google's functions-framework, unchanged."""

from __future__ import annotations

import flask
import functions_framework


@functions_framework.http
def greet(request: flask.Request) -> tuple[str, int, dict[str, str]]:
    name = request.args.get("name", "world")
    return f"Hello {name}, by {request.method}", 200, {"X-Path": request.path}
