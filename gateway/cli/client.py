"""HTTP to the gateway, for the verbs: one request per connection, every wait bounded."""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from stoker.placement.environment import state_dir
from stoker.placement.errors import (
    BadRequest,
    DeadlineExceeded,
    FunctionNotFound,
    StokerError,
    Unauthorized,
    Unavailable,
)

DEFAULT_GATEWAY = "http://127.0.0.1:8080"
USER = "admin"
BODY_BYTES_MAXIMUM = 256 << 20
CONTROL_SECONDS = 130.0
# Anything, but errors of the platform as objects rather than as sentences.
_ACCEPT = "*/*, application/json"


@dataclass(frozen=True, slots=True)
class Access:
    """Where the gateway is and how to enter it; `password` is None when none was found."""

    url: str
    password: str | None = field(default=None, repr=False)


def find_access(gateway: str | None, environment: Mapping[str, str] | None = None) -> Access:
    """--gateway or $STOKER_GATEWAY; $STOKER_PASSWORD or the one in the state directory."""
    values = os.environ if environment is None else environment
    url = gateway or values.get("STOKER_GATEWAY") or DEFAULT_GATEWAY
    password = values.get("STOKER_PASSWORD")
    if not password:
        state = state_dir(values)
        try:
            password = (state / "auth" / "password").read_text().strip()
        except OSError:
            password = None
    return Access(url.rstrip("/"), password)


class Answer:
    """A response whose body is still to be read; closes its connection when left."""

    def __init__(
        self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse, url: str
    ) -> None:
        self._connection = connection
        self._response = response
        self._url = url
        self.status = response.status
        self.headers = response.headers

    @property
    def content_type(self) -> str:
        return self.headers.get_content_type() if "Content-Type" in self.headers else ""

    def read(self) -> bytes:
        """The whole body, up to BODY_BYTES_MAXIMUM; BadRequest beyond."""
        return b"".join(self.chunks(BODY_BYTES_MAXIMUM))

    def json(self) -> Any:
        """The body as JSON; StokerError if it is not."""
        body = self.read()
        try:
            return json.loads(body)
        except ValueError as error:
            raise StokerError(
                f"Expected JSON from {self._url}, found {body[:80]!r}.",
                "Check that --gateway names a Stoker gateway.",
            ) from error

    def chunks(self, bytes_maximum: int | None = None) -> Iterator[bytes]:
        """The body in the pieces in which it arrives."""
        total = 0
        try:
            while chunk := self._response.read1(65536):
                total += len(chunk)
                if bytes_maximum is not None and total > bytes_maximum:
                    raise BadRequest(
                        f"Expected at most {bytes_maximum} bytes from {self._url}, found more.",
                        "Use --stream, which keeps nothing.",
                    )
                yield chunk
        except (OSError, http.client.HTTPException) as error:
            raise _broken(error, self._url) from error

    def lines(self) -> Iterator[bytes]:
        """The body line by line, as the lines arrive, without their ends."""
        pending = b""
        for chunk in self.chunks():
            *complete, pending = (pending + chunk).split(b"\n")
            yield from complete
        if pending:
            yield pending

    def close(self) -> None:
        self._response.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class GatewayClient:
    def __init__(self, access: Access) -> None:
        parts = urllib.parse.urlsplit(access.url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise BadRequest(
                f"Expected a gateway URL such as {DEFAULT_GATEWAY}, found {access.url!r}.",
                "Set --gateway or STOKER_GATEWAY.",
            )
        self._access = access
        self._secure = parts.scheme == "https"
        self._host, self._port, self._prefix = parts.hostname, port, parts.path

    @property
    def url(self) -> str:
        """The gateway's URL, without a slash at its end."""
        return self._access.url

    def open(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_seconds: float | None = CONTROL_SECONDS,
    ) -> Answer:
        """Send, and return once the head of the answer is there, whatever its status.

        `timeout_seconds` bounds each wait for bytes. Unavailable, DeadlineExceeded.
        """
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=timeout_seconds)
        sent = {"User-Agent": "stoker", "Accept": _ACCEPT, **self._credentials(), **(headers or {})}
        try:
            connection.request(method, self._prefix + path, body=body, headers=sent)
            return Answer(connection, connection.getresponse(), self._access.url)
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            raise _broken(error, self._access.url) from error

    def call(
        self,
        method: str,
        path: str,
        value: Any = None,
        *,
        missing: str = "",
        timeout_seconds: float = CONTROL_SECONDS,
    ) -> Any:
        """Send JSON, return the decoded answer (None if empty or not JSON); raise for 400 and up.

        `missing` names the function whose absence a 404 means.
        """
        body = None if value is None else json.dumps(value).encode()
        headers = {"Content-Type": "application/json"} if body is not None else {}
        with self.open(method, path, body, headers, timeout_seconds=timeout_seconds) as answer:
            if answer.status >= 400:
                raise error_of(answer, missing)
            return answer.json() if answer.content_type.endswith("json") else None

    def _credentials(self) -> dict[str, str]:
        if self._access.password is None:
            return {}
        pair = f"{USER}:{self._access.password}".encode()
        return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}


def error_of(answer: Answer, missing: str = "") -> StokerError:
    """The error that an answer of 400 and up stands for."""
    body = answer.read()
    wire = _error_object(body)
    if wire.get("cause"):
        return StokerError.from_wire(wire)
    if answer.status == 401:
        return Unauthorized(
            "Expected the gateway to accept the password, found: it was refused.",
            "Set STOKER_PASSWORD, or STOKER_STATE to the directory of `stoker up`.",
        )
    if answer.status == 404 and missing:
        return FunctionNotFound(
            f"Expected a function {missing!r}, found none.",
            "List the deployed functions with `stoker ls`.",
        )
    said = str(wire.get("message") or body.decode(errors="replace")).strip()
    return StokerError(f"The gateway answered {answer.status}: {said[:2000] or 'nothing'}")


def _error_object(body: bytes) -> dict[str, Any]:
    try:
        decoded = json.loads(body)
    except ValueError:
        return {}
    found = decoded.get("error", decoded) if isinstance(decoded, dict) else None
    if isinstance(found, str):
        return {"message": found}
    return found if isinstance(found, dict) else {}


def _broken(error: BaseException, url: str) -> StokerError:
    if isinstance(error, ConnectionRefusedError):
        return Unavailable(
            f"Expected a gateway at {url}, found: connection refused.",
            "Start it with `stoker up`.",
        )
    if isinstance(error, TimeoutError):
        return DeadlineExceeded(
            f"Expected an answer from {url} in time, found none.",
            "Look at `stoker ps`, or allow more with --timeout.",
        )
    if isinstance(error, socket.gaierror):
        return Unavailable(
            f"Expected the host of {url} to exist, found: {error.strerror}.",
            "Set --gateway or STOKER_GATEWAY.",
        )
    said = str(error) or type(error).__name__
    return Unavailable(
        f"Expected a whole answer from {url}, found: {said}.", "Look at `stoker ps` and try again."
    )
