"""Comment lines of an event stream for a client that still waits for its first event.

    : queued 3 s                      no instance is there or on its way
    : loading 43 % 1.2 GB/s           the node's own count of the weights in its memory
    : starting 9 s                    the weights are there, or there are none
    : working 12 s                    an instance serves; it has the request, or others before it

Clients ignore them; proxies and people see that somebody is there. The head must leave for them,
so they begin only after FIRST_SECONDS: until then an error is a status, and the head has the
stages of the start. What fails later is told in the stream.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from stoker.gateway.exchange import Headers, Reply
from stoker.placement.errors import StokerError
from stoker.placement.records import FunctionRecord, NodeRecord
from stoker.placement.view import Snapshot

FIRST_SECONDS = 3.0
EVERY_SECONDS = 1.0
# How many loads are remembered, and a rate is only of two looks that are close.
LOADS_MAXIMUM = 64
LOOK_SECONDS_MINIMUM = 0.9
LOOK_SECONDS_MAXIMUM = 5.0
EVENT_STREAM = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]


class Nodes(Protocol):
    """What is asked of a node."""

    async def loaded_bytes(self, node: NodeRecord, digest: str) -> int:
        """Bytes of a checkpoint's weights in the node's memory; StokerError."""
        ...


@dataclass(frozen=True, slots=True)
class _Look:
    """What a node said of a load; `rate` is in bytes per second, 0 after the first look."""

    at: float
    loaded_bytes: int
    rate: float


class Stages:
    """Says in a few words how far a start is."""

    def __init__(self, snapshot: Callable[[], Snapshot], nodes: Nodes) -> None:
        self._snapshot = snapshot
        self._nodes = nodes
        self._looks: dict[tuple[str, str], _Look] = {}
        self._asking: dict[tuple[str, str], asyncio.Task[_Look | None]] = {}

    async def of(self, function: FunctionRecord, waited_seconds: float) -> str:
        """The stage of the function's start, as a comment line says it."""
        snapshot = self._snapshot()
        serving, assigned = snapshot.replicas_of(function.key)
        if not assigned:
            return f"queued {waited_seconds:.0f} s"
        if serving:
            return f"working {waited_seconds:.0f} s"
        node = snapshot.nodes.get(snapshot.assignments_of(function.key)[0].node_id)
        if node is not None and function.checkpoint is not None:
            look = await self._look(node, function.checkpoint.digest)
            whole = function.checkpoint.weight_bytes
            if look is not None and look.loaded_bytes < whole:
                rate = f" {_rate(look.rate)}" if look.rate else ""
                return f"loading {100 * look.loaded_bytes // whole} %{rate}"
        return f"starting {waited_seconds:.0f} s"

    async def _look(self, node: NodeRecord, digest: str) -> _Look | None:
        """What the node says now, asked once for all who wait for the same; None if nothing.

        It is asked again and again because somebody reads the line each time.
        """
        key = (node.node_id, digest)
        look = self._looks.get(key)
        if look is not None and time.monotonic() - look.at < LOOK_SECONDS_MINIMUM:
            return look
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = asyncio.create_task(self._ask(node, digest))
            asking.add_done_callback(lambda _: self._asking.pop(key))
        await asyncio.wait({asking})
        return asking.result()

    async def _ask(self, node: NodeRecord, digest: str) -> _Look | None:
        key, now = (node.node_id, digest), time.monotonic()
        try:
            loaded = await self._nodes.loaded_bytes(node, digest)
        except StokerError:
            return None
        rate, before = 0.0, self._looks.pop(key, None)
        if before is not None and now - before.at < LOOK_SECONDS_MAXIMUM:
            rate = max(0.0, (loaded - before.loaded_bytes) / (now - before.at))
        # The youngest last, so that the oldest goes first.
        self._looks[key] = look = _Look(now, loaded, rate)
        while len(self._looks) > LOADS_MAXIMUM:
            del self._looks[next(iter(self._looks))]
        return look


class Comments:
    """Writes what `describe` says to `reply` while nothing else does: from now until `end`.

    `begun` tells whether the head of an event stream has left.
    """

    def __init__(
        self,
        reply: Reply,
        headers: Callable[[], Headers],
        describe: Callable[[], Awaitable[str]],
    ) -> None:
        self._reply = reply
        self._headers = headers
        self._describe = describe
        self.begun = False
        self._ended = False
        # Held while a line is written: who ends it waits for that line.
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(FIRST_SECONDS, self._begin)

    async def end(self) -> None:
        """No line is written any more; may be called again."""
        self._timer.cancel()
        if self._task is not None:
            async with self._writing:
                self._ended = True
            self._task.cancel()

    def _begin(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            line = await self._describe()
            async with self._writing:
                if self._ended:
                    return
                if not self.begun:
                    self.begun = True
                    await self._reply.start(200, [*EVENT_STREAM, *self._headers()])
                await self._reply.write(comment(line))
            await asyncio.sleep(EVERY_SECONDS)


def comment(line: str) -> bytes:
    """A comment of an event stream; control characters have no place in it."""
    return f": {''.join(c for c in line if c.isprintable())}\n\n".encode()


def _rate(bytes_per_second: float) -> str:
    if bytes_per_second < 1e8:
        return f"{bytes_per_second / 1e6:.0f} MB/s"
    return f"{bytes_per_second / 1e9:.1f} GB/s"
