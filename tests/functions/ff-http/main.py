"""As in the README of functions-framework: a Flask request in, what Flask takes out."""

import flask
import functions_framework


@functions_framework.http
def echo(request: flask.Request) -> flask.typing.ResponseReturnValue:
    if request.method == "OPTIONS":
        return "", 204, {"Access-Control-Allow-Origin": "*"}
    if request.headers.get("Content-Type", "").startswith("application/cloudevents"):
        return request.get_data(), 200, {"X-Kind": request.headers["Content-Type"]}
    return {"got": request.get_json(silent=True), "path": request.path}
