"""Chunks for other nodes: `GET /chunks/<checkpoint digest>/<ordinal>`, by ranges."""

from __future__ import annotations

import asyncio
import re
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stoker.placement.errors import BadRequest, NotFound, Unavailable

CHUNKS_SENT_MAXIMUM = 16
SEND_SECONDS_MAXIMUM = 60.0
PIECE_BYTES = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ORDINAL = re.compile(r"[0-9]{1,9}")
_RANGE = re.compile(r"bytes=([0-9]{1,12})-([0-9]{1,12})")


class Lent(Protocol):
    @property
    def byte_count(self) -> int: ...
    def read(self, offset: int, byte_count: int) -> bytes: ...
    def close(self) -> None: ...


class LendChunk(Protocol):
    def __call__(self, digest: str, ordinal: int) -> Lent | None: ...


class ChunkRoute:
    """At most CHUNKS_SENT_MAXIMUM answers at a time; more are told to go elsewhere."""

    def __init__(self, lend: LendChunk) -> None:
        self._lend = lend
        self._sending = 0

    async def answer(self, request: Request) -> Response:
        """NotFound for a chunk that is not here; BadRequest for a range that it has not got."""
        digest, ordinal = request.path_params["digest"], request.path_params["ordinal"]
        if not _DIGEST.fullmatch(digest) or not _ORDINAL.fullmatch(ordinal):
            raise NotFound("Expected /chunks/<64 hex digits>/<ordinal>, found another path.")
        if self._sending >= CHUNKS_SENT_MAXIMUM:
            raise Unavailable(
                f"Expected fewer than {CHUNKS_SENT_MAXIMUM} chunks on their way from this node.",
                "Take the chunk from another node or from its source.",
                retry_after_seconds=1,
            )
        self._sending += 1
        lent = None
        try:
            lent = await asyncio.to_thread(self._lend, digest, int(ordinal))
            begin, end = _range(request.headers.get("range"), lent)
            assert lent is not None
            return _ChunkAnswer(self, lent, begin, end)
        except BaseException:
            self.sent(lent)
            raise

    def sent(self, lent: Lent | None) -> None:
        self._sending -= 1
        if lent is not None:
            lent.close()


class _ChunkAnswer(Response):
    """Bytes [begin, end) of a chunk, which is given back at the end, however that comes."""

    def __init__(self, route: ChunkRoute, lent: Lent, begin: int, end: int) -> None:
        whole = end - begin == lent.byte_count
        super().__init__(status_code=200 if whole else 206, media_type="application/octet-stream")
        self.headers["Content-Length"] = str(end - begin)
        self.headers["Content-Range"] = f"bytes {begin}-{end - 1}/{lent.byte_count}"
        self._route, self._lent, self._begin, self._end = route, lent, begin, end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        try:
            async with asyncio.timeout(SEND_SECONDS_MAXIMUM):
                await send(
                    {
                        "type": "http.response.start",
                        "status": self.status_code,
                        "headers": self.raw_headers,
                    }
                )
                await self._send_body(send)
        except TimeoutError:
            return  # the server ends a connection whose answer is not complete
        finally:
            self._route.sent(self._lent)

    async def _send_body(self, send: Send) -> None:
        at = self._begin
        while at < self._end:
            wanted = min(PIECE_BYTES, self._end - at)
            piece = await asyncio.to_thread(self._lent.read, at, wanted)
            if not piece:
                return
            at += len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": at < self._end})


def _range(text: str | None, lent: Lent | None) -> tuple[int, int]:
    if lent is None:
        raise NotFound("Expected a chunk that is on this node, found that it is not (yet).")
    if text is None:
        return 0, lent.byte_count
    found = _RANGE.fullmatch(text)
    if found is None or not int(found[1]) <= int(found[2]) < lent.byte_count:
        raise BadRequest(
            f"Expected one range bytes=first-last of {lent.byte_count} bytes, found {text!r:.60}."
        )
    return int(found[1]), int(found[2]) + 1
