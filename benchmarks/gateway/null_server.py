"""A null function: it answers as fast as Python can, so that all that is added can be seen.

    python null_server.py PORT

POST /v1/chat/completions   an answer as OpenAI's
/stream                     server-sent events: one at once, then one each 10 ms
/hold                       one event, then silence
anything else               two bytes of JSON
"""

from __future__ import annotations

import asyncio
import re
import resource
import sys
from typing import Any

import uvloop

EVENTS = 4
EVENT_SECONDS = 0.01
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)
_CHAT = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"null","choices":[{"index":'
    b'0,"message":{"role":"assistant","content":"Yes."},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":4,"completion_tokens":1,"total_tokens":5}}'
)
_EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"Yes."}}]}\n\n'


def _whole(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


_NULL, _ANSWER = _whole(b"{}"), _whole(_CHAT)
_CHUNK = b"%x\r\n%s\r\n" % (len(_EVENT), _EVENT)
_STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    + _CHUNK
)


class Null(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._held = b""

    def data_received(self, data: bytes) -> None:
        self._held += data
        while (end := self._held.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._held, 0, end + 2)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self._held) < whole:
                return
            path = self._held.split(b" ", 2)[1]
            self._held = self._held[whole:]
            self._answer(path)

    def _answer(self, path: bytes) -> None:
        if path.endswith(b"/stream"):
            self._transport.write(_STREAM)
            self._later(EVENTS)
        elif path.endswith(b"/hold"):
            self._transport.write(_STREAM)
        else:
            self._transport.write(_ANSWER if path.endswith(b"/chat/completions") else _NULL)

    def _later(self, left: int) -> None:
        asyncio.get_running_loop().call_later(EVENT_SECONDS, self._event, left - 1)

    def _event(self, left: int) -> None:
        self._transport.write(_CHUNK)
        if left:
            self._later(left)
        else:
            self._transport.write(b"0\r\n\r\n")


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Null, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    uvloop.run(serve(int(sys.argv[1])))
