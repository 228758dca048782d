"""What a worker's HTTP server and its handlers say to each other."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass

from stoker.placement.cloud_event import CloudEvent

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """One call with its whole body. Header names are lower-case; `query` has no `?`.

    `event` is set where the call is an event's.
    """

    method: str
    path: str
    query: str
    headers: Headers
    body: bytes
    event: CloudEvent | None = None

    def header(self, name: str, default: str = "") -> str:
        """The first header called `name` (lower-case)."""
        return next((value for key, value in self.headers if key == name), default)

    @property
    def public_headers(self) -> Headers:
        """What user code may see: all but what gateway and worker tell each other."""
        return tuple(pair for pair in self.headers if not pair[0].startswith("x-stoker-"))


@dataclass(frozen=True, slots=True)
class Response:
    """The answer; a generator `body` is sent piece by piece and always closed.

    `prefill` is when the work before the first token began and ended (monotonic), where there
    was any.
    """

    status: int = 200
    headers: Headers = ()
    body: bytes | AsyncGenerator[bytes, None] = b""
    prefill: tuple[float, float] | None = None


Handler = Callable[[Request], Awaitable[Response]]


def checked_headers(headers: Iterable[tuple[str, str]]) -> Headers:
    """The headers that user code wants to send; ValueError for one that would break the head."""
    checked = tuple(headers)
    for name, value in checked:
        if not name.isascii() or any(c in name + value for c in "\r\n\0"):
            raise ValueError(f"the function returned the header {name!r}")
    return checked


def json_response(payload: bytes, status: int = 200) -> Response:
    return Response(status, (("content-type", "application/json"),), payload)
