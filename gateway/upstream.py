"""The connections to instances. Foreign exceptions end here."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import aiohttp
from aiohttp.payload import Payload
from multidict import CIMultiDict
from yarl import URL

from stoker.placement.errors import DeadlineExceeded, InstanceLost

CONNECT_SECONDS = 5.0
# Shorter than the instances keep an idle connection, so that it is we who close it.
IDLE_CONNECTION_SECONDS = 60.0
# A machine that vanished says nothing: probes find it after 5 + 3 * 5 seconds.
PROBE_SECONDS = 5
PROBES = 3
WRITE_BYTES = 256 * 1024

_NOT_ADDED = frozenset({"Accept", "Accept-Encoding", "Content-Type", "User-Agent"})
MISDIRECTED = 421


class NotTaken(Exception):
    """The instance did not take the request; nothing came of it."""


class Upstream:
    """`head_seconds` bounds the wait for a response's head, counted from the dispatch."""

    def __init__(self, session: aiohttp.ClientSession, head_seconds: float) -> None:
        self._session = session
        self._head_seconds = head_seconds

    async def open(
        self, address: str, method: str, path: str, headers: list[tuple[str, str]], body: bytes
    ) -> UpstreamResponse:
        """Send the request and wait for the head of the response.

        NotTaken, InstanceLost (`request_sent` tells whether all of it had left), DeadlineExceeded.
        """
        payload = _Body(body) if body else None
        try:
            async with asyncio.timeout(self._head_seconds):
                response = await self._session.request(
                    method,
                    URL(f"http://{address}{path}", encoded=True),
                    headers=CIMultiDict(headers),
                    data=payload,
                    skip_auto_headers=_NOT_ADDED,
                    allow_redirects=False,
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotTaken(str(error)) from error
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"The instance at {address} gave no response within {self._head_seconds:g} s.",
                "Ask for less in one request, or raise STOKER_RESPONSE_HEAD_SECONDS_MAXIMUM.",
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _lost(address, error, payload is None or payload.sent) from error
        if response.status == MISDIRECTED and "X-Stoker-Misdirected" in response.headers:
            response.close()
            raise NotTaken(f"another instance listens at {address}")
        return UpstreamResponse(address, response)


class UpstreamResponse:
    """A response whose body is still to come. To be closed."""

    def __init__(self, address: str, response: aiohttp.ClientResponse) -> None:
        self._address = address
        self._response = response
        self.status = response.status
        self.raw_headers = response.raw_headers

    def header(self, name: str) -> str:
        return self._response.headers.get(name, "")

    async def read_some(self) -> tuple[bytes, bool]:
        """What has come, as soon as something has, and whether that was all; InstanceLost."""
        try:
            content = self._response.content
            return await content.readany(), content.at_eof()
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _lost(self._address, error, request_sent=True) from error

    async def read_at_most(self, bytes_maximum: int) -> bytes | None:
        """The whole body, or None if it is longer; InstanceLost."""
        parts: list[bytes] = []
        size, ended = 0, False
        while not ended:
            part, ended = await self.read_some()
            size += len(part)
            if size > bytes_maximum:
                return None
            parts.append(part)
        return b"".join(parts)

    def close(self) -> None:
        """Close the connection unless the body was read to its end."""
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()


def open_session() -> aiohttp.ClientSession:
    """The session of this process; to be made inside its event loop."""
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


class _Body(Payload):
    """The request's body; remembers whether it was written to its end."""

    def __init__(self, body: bytes) -> None:
        super().__init__(body, content_type="application/octet-stream")
        self._size = len(body)
        self.sent = False

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return bytes(self._value).decode(encoding, errors)

    async def write(self, writer: Any) -> None:
        view = memoryview(self._value)
        for begin in range(0, len(view), WRITE_BYTES):
            await writer.write(view[begin : begin + WRITE_BYTES])
        self.sent = True

    async def write_with_length(self, writer: Any, content_length: int | None) -> None:
        assert content_length in (None, self._size)
        await self.write(writer)


def _probed_socket(address: Any) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family=family, type=kind, proto=protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_SECONDS)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_SECONDS)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
    return made


def _lost(address: str, error: Exception, request_sent: bool) -> InstanceLost:
    return InstanceLost(
        f"The instance at {address} was lost while it worked on the request "
        f"({error or type(error).__name__}).",
        "Send the request again if repeating it does no harm.",
        request_sent=request_sent,
    )
