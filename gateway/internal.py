"""How our own processes talk to each other: the session, and the errors they answer with."""

from __future__ import annotations

import socket
from typing import Any

import aiohttp
import orjson

from stoker.gateway.connection import probe
from stoker.placement.errors import StokerError

CONNECT_SECONDS = 5.0
# Shorter than they keep an idle connection, so that it is we who close it.
IDLE_CONNECTION_SECONDS = 3.0


def open_session() -> aiohttp.ClientSession:
    """The session for placement and agents; to be made inside the event loop."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0,
            keepalive_timeout=IDLE_CONNECTION_SECONDS,
            socket_factory=_probed_socket,
        ),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        read_bufsize=256 * 1024,
    )


def _probed_socket(address: Any) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family=family, type=kind, proto=protocol)
    probe(made)
    return made


def wire_error(status: int, body: bytes, who: str) -> StokerError:
    """The error in an answer of ours; the root class when it is no such answer."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        fields = None
    error = fields.get("error") if isinstance(fields, dict) else None
    if isinstance(error, dict) and "code" in error:
        return StokerError.from_wire(error)
    return StokerError(f"Expected a typed answer of {who}, found status {status}.")
