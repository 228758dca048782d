"""An HTTP proxy before a real S3 server that breaks answers by plan.

Clients sign for the proxy's address, and the Host header goes on unchanged, so the server behind
verifies real signatures.
"""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

PIECE_BYTES = 64 << 10
SILENCE_SECONDS_MAXIMUM = 60.0


@dataclass(frozen=True)
class Asked:
    """A request; `nth` counts those for the same end of the same object, from 0."""

    key: str
    first: int | None
    last: int | None
    nth: int
    at_seconds: float


@dataclass(frozen=True)
class Fault:
    """What to do to one answer; the fields apply together."""

    status: int | None = None  # answer this, with `code`, without asking the server
    code: str = ""
    silent: bool = False  # never answer
    bytes_per_second: float | None = None
    keep: float = 1.0  # the share of the body that is sent before the connection ends
    extra_length: int = 0  # added to Content-Length
    flip_at: int | None = None  # the position in the object of a byte whose lowest bit flips


Plan = Callable[[Asked], Fault | None]


def sometimes(seed: int, share: float, fault: Fault) -> Plan:
    """`fault` for `share` of all requests, whatever their order: the seed decides for each."""

    def plan(asked: Asked) -> Fault | None:
        named = f"{seed} {asked.key} {asked.last} {asked.nth}"
        return fault if random.Random(named).random() < share else None

    return plan


def for_weights(fault: Fault, times: int = 1, end: int | None = None) -> Plan:
    """`fault` for the first `times` requests for each range (or that which ends at `end`)."""

    def plan(asked: Asked) -> Fault | None:
        hit = asked.key.endswith(".safetensors") and end in (None, asked.last)
        return fault if hit and asked.nth < times else None

    return plan


def for_byte(fault: Fault, position: int, times: int = 1) -> Plan:
    """`fault` for the first `times` requests for ranges of weights that have this byte."""
    left = [fault] * times

    def plan(asked: Asked) -> Fault | None:
        of_weights = asked.key.endswith(".safetensors")
        hit = of_weights and (asked.first or 0) <= position <= (asked.last or -1)
        return left.pop() if hit and left else None

    return plan


@dataclass
class FaultProxy:
    """`plan` may be changed at any time; `asked` and `body_bytes` say what went through."""

    target: str
    plan: Plan = lambda asked: None
    bytes_per_second: float | None = None  # of every connection that no fault slows
    before: Callable[[Asked], None] = lambda asked: None
    asked: list[Asked] = field(default_factory=list)
    faults: int = 0
    body_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def ask(self, target: str, span: str | None) -> tuple[Asked, Fault | None]:
        key = urlsplit(target).path.lstrip("/")
        ends = span.removeprefix("bytes=").split("-") if span else None
        first, last = (int(ends[0]), int(ends[1])) if ends else (None, None)
        with self.lock:
            nth = sum(asked.key == key and asked.last == last for asked in self.asked)
            asked = Asked(key, first, last, nth, time.monotonic())
            self.asked.append(asked)
        fault = self.plan(asked)
        with self.lock:
            self.faults += fault is not None
        self.before(asked)
        return asked, fault

    def tries(self) -> dict[tuple[str, int | None], int]:
        """How often each end of each object was asked for."""
        counts: dict[tuple[str, int | None], int] = {}
        for asked in self.asked:
            counts[asked.key, asked.last] = counts.get((asked.key, asked.last), 0) + 1
        return counts


@contextmanager
def proxied(target: str, plan: Plan = lambda asked: None) -> Iterator[FaultProxy]:
    proxy = FaultProxy(target, plan)
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    with _Server(("127.0.0.1", 0), handler) as server:
        proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield proxy
        finally:
            proxy.closing.set()
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        return  # clients that hang up are what the tests are about


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: FaultProxy

    def do_GET(self) -> None:
        asked, fault = self.proxy.ask(self.path, self.headers.get("Range"))
        fault = fault or Fault(bytes_per_second=self.proxy.bytes_per_second)
        if fault.silent:
            self._be_silent()
        elif fault.status is not None:
            self._refuse(fault)
        else:
            self._pass_on(asked, fault)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        return

    def _be_silent(self) -> None:
        self.close_connection = True
        self.connection.settimeout(SILENCE_SECONDS_MAXIMUM)
        with suppress(OSError):
            self.connection.recv(1)  # until the client hangs up

    def _refuse(self, fault: Fault) -> None:
        body = f"<Error><Code>{fault.code}</Code><Message>planned</Message></Error>".encode()
        self.send_response(fault.status or 500)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _pass_on(self, asked: Asked, fault: Fault) -> None:
        far = http.client.HTTPConnection(urlsplit(self.proxy.target).netloc, timeout=30)
        try:
            far.putrequest("GET", self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                far.putheader(name, value)
            far.endheaders()
            answer = far.getresponse()
            self.send_response_only(answer.status, answer.reason)
            length = int(answer.headers.get("Content-Length", 0))
            for name, value in answer.headers.items():
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            body = answer.read() if answer.chunked else None
            length = len(body) if body is not None else length
            self.send_header("Content-Length", str(length + fault.extra_length))
            self.end_headers()
            if body is not None:
                self.wfile.write(body)
                return
            self._send(answer, asked, fault, length)
        finally:
            far.close()

    def _send(
        self, answer: http.client.HTTPResponse, asked: Asked, fault: Fault, length: int
    ) -> None:
        rate = fault.bytes_per_second
        piece_bytes = PIECE_BYTES if rate is None else max(1, min(PIECE_BYTES, int(rate / 20)))
        keep = int(length * fault.keep) + min(fault.extra_length, 0)
        begun, sent = time.monotonic(), 0
        while sent < keep:
            piece = bytearray(answer.read(min(piece_bytes, keep - sent)))
            if not piece:
                break
            flip = -1 if fault.flip_at is None else fault.flip_at - (asked.first or 0) - sent
            if 0 <= flip < len(piece):
                piece[flip] ^= 1
            self.wfile.write(piece)
            sent += len(piece)
            with self.proxy.lock:
                self.proxy.body_bytes += len(piece)
            if rate is not None:
                ahead = begun + sent / rate - time.monotonic()
                if ahead > 0 and self.proxy.closing.wait(ahead):
                    break
        if sent != length + fault.extra_length:
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
