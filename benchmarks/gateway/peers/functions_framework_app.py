"""functions-framework: a null function, by its own command's server."""

from __future__ import annotations

import flask
import functions_framework


@functions_framework.http
def null(request: flask.Request) -> flask.typing.ResponseReturnValue:  # noqa: ARG001
    return {}
