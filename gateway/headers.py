"""Which headers pass between client and instance, and what the gateway adds."""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Callable

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
_DROPPED_IN_REQUEST = HOP_BY_HOP | _INTERNAL | _REPLACED
_DROPPED_IN_RESPONSE = HOP_BY_HOP | _OURS_IN_RESPONSE
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
) -> Headers:
    """What the instance gets. `is_ours` tells our own credentials, which no function may see."""
    dropped = _named_by_connection(request.headers)
    kept = [
        (name, value)
        for name, value in request.headers
        if name not in _DROPPED_IN_REQUEST
        and name not in dropped
        and not name.startswith(b"x-stoker-")
        and not (name == b"authorization" and is_ours(value.decode("latin-1")))
    ]
    host = request.header(b"x-forwarded-host") or request.header(b"host")
    scheme = request.header(b"x-forwarded-proto") or request.scheme
    before = request.header(b"x-forwarded-for")
    chain = f"{before}, {request.peer}" if before else request.peer
    kept += [
        (b"x-call-id", call_id.encode("latin-1")),
        (b"x-start-time", b"%d" % start_nanoseconds),
        (b"x-forwarded-for", chain.encode("latin-1")),
        (b"x-forwarded-host", host.encode("latin-1")),
        (b"x-forwarded-proto", scheme.encode("latin-1")),
    ]
    if not request.header(b"forwarded"):
        kept.append((b"forwarded", _forwarded(chain, host, scheme).encode("latin-1")))
    return kept


def dispatch_headers(instance_id: str, cluster_token: str) -> Headers:
    """Which instance is meant, its token, and when the request left for it (Unix nanoseconds).

    An address may have passed to another instance meanwhile; that one says so and takes nothing.
    """
    return [
        (b"x-stoker-instance", instance_id.encode()),
        (b"x-stoker-token", _token(cluster_token, instance_id)),
        (b"x-stoker-dispatched", b"%d" % time.time_ns()),
    ]


@functools.lru_cache(maxsize=4096)
def _token(cluster_token: str, instance_id: str) -> bytes:
    return instance_token(cluster_token, instance_id).encode()


def client_headers(raw: Headers) -> Headers:
    """What the client gets of an instance's response headers; names are in small letters."""
    dropped = _named_by_connection(raw)
    return [
        (name, value)
        for name, value in raw
        if name not in _DROPPED_IN_RESPONSE
        and name not in dropped
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
