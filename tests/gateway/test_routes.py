"""Every route stands in the OpenAPI document, and none is open by accident."""

from __future__ import annotations

import json

import orjson

from harness import web
from harness.gateway import Bench
from harness.routes import documented_routes, every_route, flask_routes
from stoker.gateway.gateway import PATHS, PREFIXES
from stoker.gateway.openai import _TASKS
from stoker.gateway.openapi import FOLDER, merged


# What OpenFaaS' contract leaves open. A route that is added here is open to the whole network.
def opened(method: str, path: str) -> bool:
    accepted = method == "POST" and path.startswith("/async-function/")
    return accepted or path.startswith("/function/") or path == "/healthz"


def test_every_served_route_is_in_the_document() -> None:
    documented = documented_routes()
    missing = {
        f"{method} {path}"
        for method, path in flask_routes()
        if method not in ("HEAD", "OPTIONS") and (method, path) not in documented
    }
    missing |= {f"GET {path}" for path in PATHS if ("GET", path) not in documented}
    missing |= {f"POST {path}" for path in _TASKS if ("POST", path) not in documented}
    missing |= {
        f"{prefix}…"
        for prefix in PREFIXES
        if not any(path.startswith(prefix) for _, path in documented)
    }
    assert missing == set(), f"add them to a file in {FOLDER.name}/, as the others stand there"


def test_every_documented_route_is_served() -> None:
    served = flask_routes()
    stale = {
        f"{method} {path}"
        for method, path in documented_routes()
        if (method, path) not in served and path not in PATHS and not path.startswith(PREFIXES)
    }
    assert stale == set(), f"remove them from {FOLDER.name}/"


def test_operations_have_ids_of_their_own_and_say_what_they_do() -> None:
    operations = [
        operation
        for item in merged()["paths"].values()
        for method, operation in item.items()
        if method != "parameters"
    ]
    ids = [operation["operationId"] for operation in operations if "operationId" in operation]
    assert len(ids) == len(set(ids))
    assert all(operation["summary"] and operation["responses"] for operation in operations)


def test_without_a_token_every_route_is_401_but_those_that_openfaas_leaves_open(
    bench: Bench,
) -> None:
    routes = every_route()
    assert len(routes) > 60
    for headers in ({}, {"Authorization": "Bearer "}, web.basic("wrong"), web.bearer("stk_0")):
        answers = {
            (method, path): bench.call(method, path, None, headers).status
            for method, path in routes
            if not opened(method, path)
        }
        assert {route for route, status in answers.items() if status != 401} == set()


def test_a_refusal_of_a_route_of_openfaas_says_what_its_clients_know(bench: Bench) -> None:
    for path in ("/system/functions", "/system/logs?name=x", "/nothing", "/metrics"):
        answer = bench.call("GET", path)
        assert (answer.status, answer.body) == (401, b"invalid credentials")
        assert answer.headers["www-authenticate"] == 'Basic realm="Restricted"'


def test_a_body_of_somebody_unknown_is_not_read(bench: Bench) -> None:
    """Only the head of a request is worth an answer: nothing waits for the rest."""
    connection, _ = web.connect(bench.url)
    connection.putrequest("POST", "/system/functions")
    connection.putheader("Content-Length", "900000")
    connection.endheaders()
    connection.sock.settimeout(3)
    assert connection.getresponse().status == 401
    connection.close()


def test_the_document_is_served_and_complete(bench: Bench) -> None:
    answer = bench.system("GET", "/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.body) == json.loads(orjson.dumps(merged()))
    assert answer.json()["openapi"] == "3.1.0"
