"""The control plane: its route table, and how its answers and errors look."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import orjson
import structlog
from flask import Flask, Response, g, request
from prometheus_client import CONTENT_TYPE_LATEST
from werkzeug.exceptions import HTTPException, MethodNotAllowed

import stoker
from stoker.gateway import openapi
from stoker.gateway.access import check_control, stated, unauthorized
from stoker.gateway.audit import AuditLog
from stoker.gateway.auth import ADMIN, Credentials
from stoker.gateway.builder import BundleSink, ChangeSink, ImageStore, build, publish
from stoker.gateway.exchange import error_answer
from stoker.gateway.functions import Functions
from stoker.gateway.json_body import json_object
from stoker.gateway.metrics import Metrics
from stoker.gateway.namespaces import Namespaces
from stoker.gateway.secrets import Secrets
from stoker.gateway.tokens import Tokens
from stoker.placement.errors import BadRequest, NotFound, StokerError
from stoker.placement.records import encode
from stoker.placement.view import Snapshot
from stoker.placement.why import WhyAnswer

_NAME = "<name>"
_log = structlog.get_logger()


@dataclass(frozen=True)
class ControlPlane:
    """What the routes work with. `in_flight` counts our requests in one function's instance."""

    functions: Functions
    namespaces: Namespaces
    secrets: Secrets
    snapshot: Callable[[], Snapshot]
    in_flight: Callable[[str, str], int]
    metrics: Metrics
    credentials: Credentials
    bundles: BundleSink
    image_store: ImageStore
    view: ChangeSink
    why: Callable[[str], WhyAnswer]
    measure: Callable[[], None]
    tokens: Tokens
    audit: AuditLog


def create_app(control: ControlPlane) -> Flask:
    """The Flask app; every route of it wants a password or a token."""
    app = Flask("stoker.gateway", static_folder=None)
    # A redirect would answer another path than the one that was judged.
    app.url_map.merge_slashes = False

    app.before_request(lambda: _authorize(control.credentials))
    app.after_request(lambda response: _audited(control.audit, response))
    _add_functions(app, control.functions)
    _add_tokens(app, control.tokens)
    _add_namespaces(app, control.namespaces)
    _add_secrets(app, control.secrets)

    @app.get("/system/info")
    def info() -> Response:
        return _json(_info())

    @app.get("/system/telemetry")
    def telemetry() -> Response:
        return _json(_telemetry(control))

    @app.get("/system/instances")
    def instances() -> Response:
        return _json(_instances(control.snapshot(), control.in_flight, time.time()))

    @app.get("/system/nodes")
    def nodes() -> Response:
        return _json(_nodes(control.snapshot()))

    @app.get("/system/why/<path:name>")
    def why(name: str) -> Response:
        return Response(encode(control.why(name)), content_type="application/json")

    @app.get("/metrics")
    def metrics() -> Response:
        try:
            control.measure()
        except StokerError as error:
            _log.warning("jobs_unmeasured", cause=error.cause)
        text = control.metrics.render(control.snapshot())
        return Response(text, content_type=CONTENT_TYPE_LATEST)

    @app.get("/openapi.json")
    def document() -> Response:
        return Response(openapi.document(), content_type="application/json")

    @app.post("/build")
    def build_route() -> Response:
        return _build(control)

    app.register_error_handler(Exception, _on_error)
    return app


def _add_functions(app: Flask, functions: Functions) -> None:
    @app.get("/system/functions")
    def list_functions() -> Response:
        return _json(functions.list_all(_namespace()))

    @app.post("/system/functions")
    def deploy() -> Response:
        functions.deploy(_body(), _namespace(), must_exist=False)
        return Response(status=202)

    @app.put("/system/functions")
    def update() -> Response:
        functions.deploy(_body(), _namespace(), must_exist=True)
        return Response(status=202)

    @app.delete("/system/functions")
    def remove() -> Response:
        functions.remove(_body(), _namespace())
        return Response(status=202)

    @app.get(f"/system/function/{_NAME}")
    def describe(name: str) -> Response:
        return _json(functions.describe(name, _namespace()))

    @app.post(f"/system/scale-function/{_NAME}")
    def scale(name: str) -> Response:
        functions.scale(name, _body(), _namespace())
        return Response(status=202)

    @app.post("/system/alert")
    def alert() -> Response:
        functions.alert(_body())
        return Response(status=200)

    @app.post(f"/system/evict-function/{_NAME}")
    def evict(name: str) -> Response:
        functions.evict(name, _body(), _namespace())
        return Response(status=204)


def _add_tokens(app: Flask, tokens: Tokens) -> None:
    @app.get("/system/tokens")
    def list_tokens() -> Response:
        return _json(tokens.list_all())

    @app.post("/system/tokens")
    def create_token() -> Response:
        return _json(tokens.create(_body()), 201)

    @app.delete("/system/tokens/<token_id>")
    def revoke_token(token_id: str) -> Response:
        tokens.revoke(token_id)
        return Response(status=204)


def _add_namespaces(app: Flask, namespaces: Namespaces) -> None:
    @app.get("/system/namespaces")
    def list_namespaces() -> Response:
        return _json(namespaces.names())

    @app.post("/system/namespace/")
    def create_namespace() -> Response:
        namespaces.create(_body())
        return Response(status=201)

    @app.get(f"/system/namespace/{_NAME}")
    def describe_namespace(name: str) -> Response:
        return _json(namespaces.describe(name))

    @app.put(f"/system/namespace/{_NAME}")
    def update_namespace(name: str) -> Response:
        namespaces.update(name, _body())
        return Response(status=202)

    @app.delete(f"/system/namespace/{_NAME}")
    def remove_namespace(name: str) -> Response:
        namespaces.remove(name)
        return Response(status=202)


def _add_secrets(app: Flask, secrets: Secrets) -> None:
    @app.get("/system/secrets")
    def list_secrets() -> Response:
        return _json(secrets.list_all(_namespace()))

    @app.post("/system/secrets")
    def create_secret() -> Response:
        secrets.create(_body(), _namespace())
        return Response(status=201)

    @app.put("/system/secrets")
    def update_secret() -> Response:
        secrets.update(_body(), _namespace())
        return Response(status=202)

    @app.delete("/system/secrets")
    def remove_secret() -> Response:
        secrets.remove(_body(), _namespace())
        return Response(status=202)


def _build(control: ControlPlane) -> Response:
    payload = request.get_data()
    streamed = "ndjson" in request.headers.get("Accept", "")
    try:
        made = build(payload)
        publish(made, control.bundles, control.image_store, control.view)
    except StokerError as error:
        # A streaming client reads the reason only behind a status that says success.
        result = {"log": [], "image": "", "status": "failed", "error": str(error)}
        return _ndjson([result], 200 if streamed else error.status)
    said = f"Packed {made.file_count} files into {len(made.archive)} bytes, sha256 {made.digest}."
    progress = {"log": [said], "image": made.image, "status": "in_progress"}
    done = {"log": [] if streamed else [said], "image": made.image, "status": "success"}
    return _ndjson([progress, done] if streamed else [done], 200)


def _on_error(error: Exception) -> Response:
    if isinstance(error, HTTPException):
        wire = NotFound if error.code == 404 else BadRequest
        known = wire(f"{request.method} {request.path:.80}: {error.description}")
        _, headers, body = error_answer(known, request.headers.get("Accept", ""))
        if isinstance(error, MethodNotAllowed):
            headers.append((b"allow", ", ".join(sorted(error.valid_methods or ())).encode()))
        return _response(error.code or 500, headers, body)
    if not isinstance(error, StokerError):
        _log.exception("control_route_broken", path=request.path, exc_info=error)
        error = StokerError("The gateway failed in a way that it does not know.")
    status, headers, body = error_answer(error, request.headers.get("Accept", ""))
    return _response(status, headers, body)


def _authorize(credentials: Credentials) -> None:
    """Let nobody pass who is not known, and nobody beyond what he may do."""
    signature = request.headers.get("X-Build-Signature", "")
    if request.path == "/build" and credentials.signature(signature, request.get_data()):
        g.caller = ADMIN
        return
    g.caller = credentials.caller(request.headers.get("Authorization", ""))
    if g.caller is None:
        raise unauthorized()
    query = request.args.to_dict(flat=False)
    check_control(g.caller, request.method, request.path, query, request.get_data())


def _audited(audit: AuditLog, response: Response) -> Response:
    """Note who tried to change what, and what came of it."""
    caller = g.get("caller")
    if caller is not None and request.method not in ("GET", "HEAD", "OPTIONS"):
        query = request.args.to_dict(flat=False)
        named = stated(request.method, request.path, query, request.get_data())
        audit.note(
            {
                "token": caller.token_id,
                "peer": request.remote_addr,
                "method": request.method,
                "path": request.path,
                "namespaces": sorted(named.namespaces),
                "functions": sorted(named.functions),
                "status": response.status_code,
            }
        )
    return response


def _namespace() -> str:
    return request.args.get("namespace", "")


def _body() -> dict[str, Any]:
    return json_object(request.get_data())


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status=status, content_type="application/json")


def _ndjson(lines: list[dict[str, Any]], status: int) -> Response:
    text = b"".join(orjson.dumps(line) + b"\n" for line in lines)
    return Response(text, status=status, content_type="application/x-ndjson")


def _response(status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> Response:
    pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
    return Response(body, status=status, headers=pairs)


def _info() -> dict[str, Any]:
    release = stoker.__version__
    version = {"sha": f"v{release}", "release": release, "commit_message": f"Release {release}"}
    provider = {"provider": "stoker", "version": version, "orchestration": "stoker"}
    return {"provider": provider, "version": version, "arch": platform.machine()}


def _telemetry(control: ControlPlane) -> dict[str, Any]:
    """How much there is of everything; it names nothing, and is sent to nobody."""
    snapshot = control.snapshot()
    return {
        **_info(),
        "namespaces": len(control.namespaces.names()),
        "functions": len(snapshot.functions),
        "instances": len(snapshot.instances),
        "nodes": len(snapshot.nodes),
    }


def _instances(
    snapshot: Snapshot, in_flight: Callable[[str, str], int], now: float
) -> list[dict[str, Any]]:
    """Every instance, those included that are assigned but not yet known to their node."""
    rows: dict[str, dict[str, Any]] = {}
    for assignment in snapshot.assignments.values():
        rows[assignment.instance_id] = {
            **_without(asdict(assignment), "created_at"),
            "state": "assigned",
            "started_at": assignment.created_at,
            "pid": 0,
            "failure": None,
        }
    rows |= {i.instance_id: asdict(i) for i in snapshot.instances.values()}
    for instance_id, row in rows.items():
        row["age_seconds"] = max(0.0, now - row["started_at"])
        row["in_flight"] = in_flight(row["function"], instance_id)
    return sorted(rows.values(), key=lambda row: (row["function"], row["instance_id"]))


def _nodes(snapshot: Snapshot) -> list[dict[str, Any]]:
    rows = []
    for node in sorted(snapshot.nodes.values(), key=lambda node: node.node_id):
        residents = [r for r in snapshot.residents.values() if r.node_id == node.node_id]
        rows.append(
            {
                **asdict(node),
                "dram_resident_bytes": sum(r.dram_bytes for r in residents),
                "ssd_resident_bytes": sum(r.ssd_bytes for r in residents),
                "residents": [_without(asdict(r), "node_id") for r in residents],
                "instances": sum(i.node_id == node.node_id for i in snapshot.instances.values()),
            }
        )
    return rows


def _without(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}
