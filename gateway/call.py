"""One call of a function under way, and how the answers of its family of routes look."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

from stoker.gateway.deadline import Deadline
from stoker.gateway.exchange import Headers, Reply, Request
from stoker.gateway.upstream import UpstreamResponse
from stoker.gateway.waiting import Comments
from stoker.placement.errors import StokerError
from stoker.placement.records import FunctionRecord
from stoker.placement.resumable import StreamLog
from stoker.placement.token_record import TokenRecord

_NOT_REACHED = "fetch;dur=0, load;dur=0, init;dur=0, prefill;dur=0"


@dataclass(frozen=True, slots=True)
class Translated:
    """A whole answer; `headers` go beside those of the instance that do not tell of its body."""

    status: int
    headers: Headers
    body: bytes


class Surface(Protocol):
    """How the errors of one family of routes look; `headers` go on every response of it.

    With `token_wanted` nobody gets further who may not invoke the function.
    """

    headers: Headers
    token_wanted: bool

    def error(self, error: StokerError) -> tuple[int, Headers, bytes]:
        """Status, headers and body of a platform error."""

    def stream_error(self, error: StokerError) -> bytes:
        """The data of the event that ends a broken stream."""

    async def translated(self, response: UpstreamResponse) -> Translated | None:
        """What to answer instead of the instance's response, or None to pass that on."""


@dataclass(slots=True)
class Call:
    """One invocation under way; `admitted` if it was checked before who calls."""

    request: Request
    reply: Reply
    surface: Surface
    call_id: str
    start_nanoseconds: int = field(default_factory=time.time_ns)
    arrived_at: float = field(default_factory=time.monotonic)
    function: FunctionRecord | None = None
    caller: TokenRecord | None = None
    admitted: bool = False
    queue_seconds: float = 0.0
    place_seconds: float = 0.0
    code: int = 0
    deadline: Deadline | None = None
    comments: Comments | None = None
    relayed: bool = False
    # Whether the head of an event stream was sent.
    streams: bool = False
    # What the client was told of a stream that can go on elsewhere, and by which generation.
    log: StreamLog | None = None
    generation: int = 0

    def headers(self, served_by: str = "", stages: str = "") -> Headers:
        """What the gateway says on every response; `stages` is the instance's Server-Timing."""
        duration_seconds = time.monotonic() - self.arrived_at
        said = [
            *self.surface.headers,
            (b"x-call-id", self.call_id.encode()),
            (b"x-start-time", str(self.start_nanoseconds).encode()),
            (b"x-duration-seconds", f"{duration_seconds:f}".encode()),
            (b"server-timing", self.timing(stages).encode("latin-1", "replace")),
        ]
        if served_by:
            said.append((b"x-served-by", served_by.encode()))
        return said

    def timing(self, stages: str = "") -> str:
        """Server-Timing: our own stages before the instance's."""
        return (
            f"queue;dur={self.queue_seconds * 1000:.3f}, "
            f"place;dur={self.place_seconds * 1000:.3f}, {stages or _NOT_REACHED}"
        )

    async def has_begun(self) -> bool:
        """Whether the reply is an open event stream; no comment comes after this."""
        if self.comments is not None:
            await self.comments.end()
            self.streams = self.streams or self.comments.begun
        return self.streams and not self.reply.finished

    @property
    def broken_off(self) -> bool:
        """Whether the client was told a part, and another instance can tell the rest."""
        return self.log is not None and self.log.begun and not self.reply.finished
