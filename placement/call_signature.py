"""Calls between our own processes are signed with the cluster's token, which never travels itself.

A signature covers method, target (path and query as sent) and body: who overhears one can repeat
that call and make no other. It has no time in it, for the clocks of a cluster may differ.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

from stoker.placement.errors import Unauthorized

HEADER = "X-Stoker-Token"


def call_signature(cluster_token: str, method: str, target: str, body: bytes = b"") -> str:
    """The value of HEADER, 64 hex digits."""
    # Servers do not tell whether a "?" came with nothing behind it.
    named = target.removesuffix("?")
    message = f"stoker call\n{method}\n{named}\n{hashlib.sha256(body).hexdigest()}"
    return hmac.new(cluster_token.encode(), message.encode(), hashlib.sha256).hexdigest()


def target_of(scope: Mapping[str, Any]) -> str:
    """The target of an ASGI request, as its client sent it."""
    path, query = scope["raw_path"], scope["query_string"]
    sent: bytes = path + b"?" + query if query else path
    return sent.decode("latin-1")


def check_call(
    cluster_token: str, offered: str, method: str, target: str, body: bytes = b""
) -> None:
    """Unauthorized unless `offered` signs this very call."""
    expected = call_signature(cluster_token, method, target, body)
    if not hmac.compare_digest(offered.encode("utf-8", "replace"), expected.encode()):
        raise Unauthorized(
            f"Expected a call signed with the cluster token in {HEADER}, found another or none.",
            "Give every process of the cluster the same STOKER_CLUSTER_TOKEN_FILE.",
        )
