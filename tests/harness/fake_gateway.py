"""A small real HTTP server that answers the routes which the verbs use."""

import hashlib
import hmac
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import stoker
from stoker.placement.records import encode
from stoker.placement.why import Rejected, StageSeconds, WhyAnswer

PASSWORD = "the-password"
AUTHORIZATION = "Basic YWRtaW46dGhlLXBhc3N3b3Jk"
WHY = WhyAnswer(
    decided_at=1.0,
    function="chat.openfaas-fn",
    policy="stoker",
    kind="ssd",
    node_id="n-1",
    instance_id="1-0",
    predicted_seconds=1.0,
    actual_seconds=1.25,
    stages=(StageSeconds("load", 0.9, 1.1),),
    victims=(),
    peer="",
    rejected=(Rejected("n-2", 8.0, "slower"),),
    rejected_count=3,
)
INSTANCE = {
    "instance_id": "i-1",
    "function": "chat.openfaas-fn",
    "generation": 1,
    "node_id": "n-1",
    "address": "127.0.0.1:9001",
    "state": "failed",
    "epoch": 1,
    "started_at": 1.0,
    "age_seconds": 95.0,
    "in_flight": 2,
    "pid": 77,
    "failure": {"code": "start_failed", "cause": "The worker died.", "remedy": ""},
}
NODE = {
    "node_id": "n-1",
    "agent_address": "127.0.0.1:9000",
    "cores": 2,
    "dram_bytes": 3 << 30,
    "dram_resident_bytes": 1 << 29,
    "ssd_bytes": 8 << 30,
    "ssd_resident_bytes": 1 << 30,
    "ssd_bandwidth": 1.5 * (1 << 30),
    "zygote_ready": True,
}


@dataclass
class FakeGateway:
    """What was deployed, and every request as (method, path, body)."""

    url: str = ""
    functions: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: list[tuple[str, str, bytes]] = field(default_factory=list)
    built: list[str] = field(default_factory=list)
    build_error: str = ""
    secrets: dict[str, dict[str, Any]] = field(default_factory=dict)
    namespaces: dict[str, dict[str, Any]] = field(default_factory=dict)
    nodes: list[dict[str, Any]] = field(default_factory=lambda: [NODE])
    release: str = stoker.__version__

    def methods(self) -> list[str]:
        return [f"{method} {path}" for method, path, _ in self.requests]


@contextmanager
def serve() -> Iterator[FakeGateway]:
    gateway = FakeGateway()
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Handler", (_Handler,), {"gateway": gateway})
    )
    gateway.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield gateway
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    gateway: FakeGateway

    def log_message(self, *_: object) -> None: ...

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = urlsplit(self.path)
        self.gateway.requests.append((self.command, self.path, body))
        if parts.path.startswith("/function/"):
            return self._invoke(parts.path.removeprefix("/function/"), body)
        if parts.path == "/healthz":
            return self._send(200, b"OK", "text/plain")
        if self.headers.get("Authorization") != AUTHORIZATION:
            return self._send(401, b"invalid credentials", "text/plain")
        return self._control(parts.path, parse_qs(parts.query), body)

    do_GET = do_POST = do_PUT = do_DELETE = _handle  # noqa: N815

    def _control(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        value = json.loads(body) if body[:1] == b"{" else {}
        name = value.get("service") or value.get("functionName") or path.rpartition("/")[2]
        if path == "/build":
            return self._build(body)
        if path == "/system/why/a-call":
            return self._send(200, encode(WHY), "application/json")
        if path == "/system/instances":
            return self._json([INSTANCE])
        if path == "/system/nodes":
            return self._json(self.gateway.nodes)
        if path == "/system/info":
            return self._json({"version": {"release": self.gateway.release}})
        if path == "/system/logs":
            line = {"timestamp": "2026-01-01T00:00:00Z", "instance": "i-1", "text": "hello\n"}
            return self._send(200, json.dumps(line).encode() + b"\n", "application/x-ndjson")
        if path == "/system/secrets":
            return self._secret(value)
        if path.startswith("/system/namespace"):
            return self._namespace(path, value)
        if path == "/system/functions" and self.command == "GET":
            return self._json(list(self.gateway.functions.values()))
        if self.command != "POST" and name not in self.gateway.functions:
            return self._send(404, b"not found", "text/plain")
        if self.command == "DELETE":
            del self.gateway.functions[name]
        elif path == "/system/functions":
            return self._deploy(name, value)
        elif self.command == "GET":
            return self._json(self.gateway.functions[name])
        return self._send(202, b"", "text/plain")

    def _secret(self, value: dict[str, Any]) -> None:
        secrets, name = self.gateway.secrets, value.get("name", "")
        if self.command == "GET":
            return self._json(
                [{k: v for k, v in s.items() if k != "rawValue"} for s in secrets.values()]
            )
        if (self.command == "POST") == (name in secrets):
            return self._refuse("conflict" if name in secrets else "not_found")
        if self.command == "DELETE":
            del secrets[name]
        else:
            secrets[name] = value
        return self._send(202, b"", "text/plain")

    def _namespace(self, path: str, value: dict[str, Any]) -> None:
        namespaces, name = self.gateway.namespaces, path.rpartition("/")[2]
        if path == "/system/namespaces":
            return self._json(["openfaas-fn", *namespaces])
        if self.command == "POST":
            namespaces[value["name"]] = value
            return self._send(201, b"", "text/plain")
        if name not in namespaces:
            return self._refuse("not_found")
        if self.command == "GET":
            return self._json(namespaces[name])
        del namespaces[name]
        return self._send(202, b"", "text/plain")

    def _refuse(self, code: str) -> None:
        error = {"error": {"code": code, "cause": "Refused.", "remedy": ""}}
        status = {"conflict": 409, "not_found": 404}[code]
        self._send(status, json.dumps(error).encode(), "application/json")

    def _deploy(self, name: str, value: dict[str, Any]) -> None:
        model = (value.get("annotations") or {}).get("stoker/model", "")
        if "missing" in model:
            error = {
                "code": "checkpoint_missing",
                "cause": f"Expected a checkpoint at {model}, found none.",
                "remedy": "Push it with `stoker model push`.",
            }
            return self._send(400, json.dumps({"error": error}).encode(), "application/json")
        status = {key: item for key, item in value.items() if key != "service"}
        self.gateway.functions[name] = {
            "name": name,
            "namespace": "openfaas-fn",
            "labels": {},
            "annotations": {},
            "replicas": 0,
            "invocationCount": 3,
            **status,
        }
        return self._send(202, b"", "text/plain")

    def _build(self, body: bytes) -> None:
        expected = hmac.new(PASSWORD.encode(), body, hashlib.sha256).hexdigest()
        if self.headers["X-Build-Signature"] != f"sha256={expected}":
            return self._send(401, b"invalid signature", "text/plain")
        with tarfile.open(fileobj=io.BytesIO(body)) as archive:
            self.gateway.built = sorted(archive.getnames())
        last = {"status": "failed" if self.gateway.build_error else "success"}
        lines = [
            {"status": "in_progress", "log": ["a"]},
            last | {"error": self.gateway.build_error},
        ]
        text = "\n".join(json.dumps(line) for line in lines)
        return self._send(200, text.encode(), "application/x-ndjson")

    def _invoke(self, name: str, body: bytes) -> None:
        if name == "crash":
            return self._send(500, b"Traceback: it broke", "text/plain")
        if name not in ("echo", "chat"):
            return self._send(404, b"not found", "text/plain", {"X-OpenFaaS-Internal": "gateway"})
        timing = {"Server-Timing": "queue;dur=0.1, load;dur=40, prefill;dur=60"}
        if b'"stream": true' in body:
            events = [
                ": loading 10 %",
                'data: {"choices": [{"delta": {"content": "Hel"}}]}',
                'data: {"choices": [{"delta": {"content": "lo"}}]}',
                "data: [DONE]",
            ]
            text = "".join(f"{event}\n\n" for event in events)
            return self._send(200, text.encode(), "text/event-stream", timing)
        return self._send(200, body, "text/plain", timing)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), "application/json")

    def _send(
        self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)
