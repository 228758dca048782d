"""Pipes that the agent's event loop reads and its children write."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from stoker.runtime.function_logs import LineSplitter


class Pipe:
    """`reader` gets what is written to `write_end`, which is to be closed once it is inherited."""

    def __init__(
        self, reader: asyncio.StreamReader, transport: asyncio.ReadTransport, write_end: int
    ) -> None:
        self.reader = reader
        self.write_end = write_end
        self._transport = transport
        self._is_open = True

    @staticmethod
    async def open() -> Pipe:
        read_end, write_end = os.pipe()
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb")
        )
        return Pipe(reader, transport, write_end)

    async def pump(self, write: Callable[[list[str]], None]) -> None:
        """Gives `write` what comes, line by line, until nobody holds the write end any more."""
        lines = LineSplitter()
        while data := await self.reader.read(64 * 1024):
            write(lines.feed(data))
        write(lines.end())

    def close_write_end(self) -> None:
        if self._is_open:
            self._is_open = False
            os.close(self.write_end)

    def close(self) -> None:
        self.close_write_end()
        self._transport.close()
