"""A small HTTP client for tests: one call, its status, headers and body; or a stream of lines."""

from __future__ import annotations

import base64
import http.client
import json
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stoker.placement.call_signature import HEADER, call_signature

TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def stages(self) -> dict[str, float]:
        """Server-Timing as milliseconds per stage."""
        parts = [part.strip().split(";dur=") for part in self.headers["server-timing"].split(",")]
        return {name: float(duration) for name, duration in parts}


def basic(password: str, user: str = "admin") -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def bearer(password: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {password}"}


def signed(
    cluster_token: str, method: str, url: str, body: bytes | str | None = None
) -> dict[str, str]:
    """What one of our own processes sends with such a call; a body is sent as it is."""
    path = url.removeprefix("http://")
    target = path if path.startswith("/") else "/" + path.partition("/")[2]
    sent = body.encode() if isinstance(body, str) else body or b""
    return {HEADER: call_signature(cluster_token, method, target, sent)}


def connect(url: str) -> tuple[http.client.HTTPConnection, str]:
    split = urllib.parse.urlsplit(url)
    path = split.path or "/"
    connection = http.client.HTTPConnection(split.netloc, timeout=TIMEOUT_SECONDS)
    return connection, path + (f"?{split.query}" if split.query else "")


def call(
    method: str,
    url: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One request; a body that is not bytes or str is sent as JSON."""
    sent = dict(headers or {})
    if body is not None and not isinstance(body, bytes | str):
        body = json.dumps(body)
        sent.setdefault("Content-Type", "application/json")
    connection, path = connect(url)
    try:
        connection.request(method, path, body=body, headers=sent)
        response = connection.getresponse()
        received = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, received, response.read())
    finally:
        connection.close()


def events(response: http.client.HTTPResponse) -> Iterator[str]:
    """The data of each server-sent event, in order, as it comes."""
    for line in response:
        if line.startswith(b"data: "):
            yield line[6:].decode().rstrip("\n")
