"""Which headers pass between client and instance, and what the gateway adds."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable

from stoker.gateway.exchange import Headers, Request
from stoker.placement.instance_token import instance_token

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Ours or another platform's inner business; a client that sends one means to fool somebody.
_INTERNAL = frozenset(
    {
        b"knative-serving-revision",
        b"knative-serving-namespace",
        b"k-proxy-request",
        b"k-network-probe",
    }
)
_REPLACED = frozenset(
    {
        b"content-length",
        b"expect",
        b"x-call-id",
        b"x-start-time",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
    }
)
_OURS_IN_RESPONSE = frozenset(
    {
        b"x-call-id",
        b"x-start-time",
        b"x-served-by",
        b"x-duration-seconds",
        b"server-timing",
        b"server",
    }
)
CALL_ID_CHARACTERS_MAXIMUM = 128


def call_id_of(request: Request) -> str:
    """The client's X-Call-Id, or a new one if there is none or it is no sensible text."""
    given = request.header(b"x-call-id")
    sensible = given.isascii() and given.isprintable() and " " not in given
    if given and sensible and len(given) <= CALL_ID_CHARACTERS_MAXIMUM:
        return given
    return str(uuid.uuid4())


def instance_headers(
    request: Request,
    call_id: str,
    start_nanoseconds: int,
    is_ours: Callable[[str], bool],
) -> list[tuple[str, str]]:
    """What the instance gets. `is_ours` tells our own credentials, which no function may see."""
    dropped = _named_by_connection(request.headers)
    kept = [
        (name.decode("latin-1"), _text(value))
        for name, value in request.headers
        if name not in dropped
        and name not in HOP_BY_HOP
        and name not in _REPLACED
        and name not in _INTERNAL
        and not name.startswith(b"x-stoker-")
        and not (name == b"authorization" and is_ours(value.decode("latin-1")))
    ]
    host = request.header(b"x-forwarded-host") or request.header(b"host")
    scheme = request.header(b"x-forwarded-proto") or request.scheme
    before = request.header(b"x-forwarded-for")
    chain = f"{before}, {request.peer}" if before else request.peer
    kept += [
        ("X-Call-Id", call_id),
        ("X-Start-Time", str(start_nanoseconds)),
        ("X-Forwarded-For", chain),
        ("X-Forwarded-Host", host),
        ("X-Forwarded-Proto", scheme),
    ]
    if not request.header(b"forwarded"):
        kept.append(("Forwarded", _forwarded(chain, host, scheme)))
    return kept


def dispatch_headers(instance_id: str, cluster_token: str) -> list[tuple[str, str]]:
    """Which instance is meant, its token, and when the request left for it (Unix nanoseconds).

    An address may have passed to another instance meanwhile; that one says so and takes nothing.
    """
    return [
        ("X-Stoker-Instance", instance_id),
        ("X-Stoker-Token", instance_token(cluster_token, instance_id)),
        ("X-Stoker-Dispatched", str(time.time_ns())),
    ]


def client_headers(raw: Iterable[tuple[bytes, bytes]]) -> Headers:
    """What the client gets of an instance's response headers, names in small letters."""
    lowered = [(name.lower(), value) for name, value in raw]
    dropped = _named_by_connection(lowered)
    return [
        (name, value)
        for name, value in lowered
        if name not in dropped
        and name not in HOP_BY_HOP
        and name not in _OURS_IN_RESPONSE
        and not name.startswith(b"x-stoker-")
    ]


def _named_by_connection(headers: Headers) -> set[bytes]:
    return {
        token.strip().lower()
        for name, value in headers
        if name == b"connection"
        for token in value.split(b",")
    }


def _forwarded(chain: str, host: str, scheme: str) -> str:
    hops = [hop.strip() for hop in chain.split(",")]
    first, *others = (f'for="[{hop}]"' if ":" in hop else f"for={hop}" for hop in hops)
    quoted = f'"{host}"' if ":" in host else host
    return ", ".join([f"{first};host={quoted};proto={scheme}", *others])


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
