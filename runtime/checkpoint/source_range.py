"""Ranges of objects over kept connections, received straight into the caller's memory.

A boto3 body can be neither ended from another thread nor read without a copy, so boto3 only
signs: the request itself goes through http.client.
"""

from __future__ import annotations

import base64
import http.client
import os
import re
import select
import ssl
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from stoker.runtime.checkpoint.source_watch import Transfer, Watch

CONNECT_SECONDS = 3
READ_SECONDS = 6
PIECE_BYTES = 256 << 10
IDLE_CONNECTIONS_MAXIMUM = 16
ERROR_BYTES_MAXIMUM = 64 << 10
_CODE = re.compile(rb"<Code>([A-Za-z0-9._-]{1,64})</Code>")


class RangeRefused(Exception):
    """An answer that is not the range; `code` is S3's own where it gave one."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(f"{code} (HTTP {status})")
        self.status = status
        self.code = code


class RangeChanged(Exception):
    """An answer of another range or of another version than was asked for."""


class RangeBroken(Exception):
    """The bytes ended too early, or their number was wrong from the start."""


class FellBehind(Exception):
    """The watch ended a transfer so that another connection takes over."""


class Wanted(NamedTuple):
    """`into` gets the bytes from `offset` on; `version` is an ETag or None for any."""

    offset: int
    into: memoryview
    version: str | None
    on_version: Callable[[str], None]  # told the ETag before the first byte; may raise
    on_bytes: Callable[[int], None]
    also: Mapping[str, str] = {}  # headers beside Range and If-Match

    @property
    def headers(self) -> dict[str, str]:
        span = f"bytes={self.offset}-{self.offset + len(self.into) - 1}"
        headers = {**self.also, "Range": span}
        return headers if self.version is None else {**headers, "If-Match": self.version}


class RangeReader:
    """Reads through at most IDLE_CONNECTIONS_MAXIMUM kept connections.

    `proxied` follows the proxy that the environment names.
    """

    def __init__(self, *, proxied: bool = True) -> None:
        self._proxied = proxied
        self._watch = Watch()
        self._lock = threading.Lock()
        self._idle: list[tuple[tuple[str, str], http.client.HTTPConnection]] = []
        weakref.finalize(self, _close_all, self._idle)

    def read(self, url: str, wanted: Wanted, deadline: float, expendable: bool) -> None:
        """Fill `wanted.into` from a signed `url`; what came before a failure has been counted.

        Raises RangeRefused, RangeChanged, RangeBroken, FellBehind, OSError and
        http.client.HTTPException. An `expendable` transfer may be ended for its slowness.
        """
        parts = urlsplit(url)
        proxy = _proxy(parts) if self._proxied else None
        target = f"{parts.path or '/'}?{parts.query}"
        if parts.scheme == "http" and proxy is not None:
            target = f"http://{parts.netloc}{target}"
        with self._connection(parts, proxy) as connection:
            if connection.sock is None:
                connection.timeout = CONNECT_SECONDS
                connection.connect()
            connection.sock.settimeout(READ_SECONDS)
            transfer = Transfer(connection.sock, len(wanted.into), deadline, expendable)
            with self._watch.watched(transfer):
                try:
                    _exchange(connection, target, parts.netloc, wanted, transfer)
                except (OSError, http.client.HTTPException, RangeBroken) as error:
                    if transfer.given_up:
                        raise FellBehind(transfer.given_up) from error
                    raise

    @contextmanager
    def _connection(
        self, parts: SplitResult, proxy: SplitResult | None
    ) -> Iterator[http.client.HTTPConnection]:
        """A connection that is kept when the block ends well, closed when it does not."""
        key = (parts.scheme, parts.netloc)
        connection = self._take(key) or _new_connection(parts, proxy)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        with self._lock:
            if connection.sock is not None and len(self._idle) < IDLE_CONNECTIONS_MAXIMUM:
                self._idle.append((key, connection))
                return
        connection.close()

    def _take(self, key: tuple[str, str]) -> http.client.HTTPConnection | None:
        while True:
            with self._lock:
                at = next((n for n, (kept, _) in enumerate(self._idle) if kept == key), None)
                if at is None:
                    return None
                connection = self._idle.pop(at)[1]
            if connection.sock is not None and not _is_readable(connection):
                return connection
            connection.close()


def _exchange(
    connection: http.client.HTTPConnection,
    target: str,
    host: str,
    wanted: Wanted,
    transfer: Transfer,
) -> None:
    connection.request("GET", target, headers={**wanted.headers, "Host": host})
    answer = connection.getresponse()
    if answer.status not in (200, 206):
        found = _CODE.search(answer.read(ERROR_BYTES_MAXIMUM))
        raise RangeRefused(answer.status, found[1].decode() if found else answer.reason[:64])
    first, size = wanted.offset, len(wanted.into)
    span = answer.headers.get("Content-Range", "")
    if not span.startswith(f"bytes {first}-{first + size - 1}/"):
        raise RangeChanged(f"{span!r:.60} for {wanted.headers['Range']}")
    version = answer.headers.get("ETag")
    if version is not None:
        wanted.on_version(version)
    length = answer.headers.get("Content-Length")
    if length != str(size):
        raise RangeBroken(f"a body of {length!r:.20} bytes for a range of {size}")
    _receive(answer, wanted, transfer)


def _receive(answer: http.client.HTTPResponse, wanted: Wanted, transfer: Transfer) -> None:
    size = len(wanted.into)
    while transfer.received_bytes < size:
        at = transfer.received_bytes
        count = answer.readinto(wanted.into[at : min(at + PIECE_BYTES, size)])
        if not count:
            raise RangeBroken(f"a body that ended after {at} of {size} bytes")
        transfer.received_bytes += count
        wanted.on_bytes(count)


def _new_connection(parts: SplitResult, proxy: SplitResult | None) -> http.client.HTTPConnection:
    host, port = parts.hostname or "", parts.port
    near = (host, port) if proxy is None else (proxy.hostname or "", proxy.port)
    if parts.scheme != "https":
        return http.client.HTTPConnection(*near, timeout=CONNECT_SECONDS)
    context = ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE") or None)
    connection = http.client.HTTPSConnection(*near, timeout=CONNECT_SECONDS, context=context)
    if proxy is not None:
        connection.set_tunnel(host, port or 443, headers=_proxy_headers(proxy))
    return connection


def _proxy(parts: SplitResult) -> SplitResult | None:
    """The proxy that the usual variables name for this endpoint."""
    found = getproxies().get(parts.scheme)
    return urlsplit(found) if found and not proxy_bypass(parts.netloc) else None


def _proxy_headers(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _is_readable(connection: http.client.HTTPConnection) -> bool:
    """An idle connection with something to read has been closed by its server."""
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


def _close_all(idle: list[tuple[tuple[str, str], http.client.HTTPConnection]]) -> None:
    for _, connection in idle:
        connection.close()
