"""Which bytes are fetched next: a decision about what is queued, without threads or clocks.

    head chunk  |####|####|>>>>|>>>>|....|   # here   > under way, one connection each   . queued
    next chunk  |.......................|

- Of several loads the one with the earliest deadline goes first; one without a deadline gets what
  is left. Of a load the chunk with the lowest ordinal goes first, front to back.
- A part is what one connection brings in at most PART_SECONDS. All that is under way is then at
  most PART_SECONDS of the whole wire, slow or fast: so much later than at best is the head chunk
  whole, and so long does an urgent load wait for connections. On a fast wire a part is a chunk,
  for each request costs both ends a millisecond or two of CPU.
- A load that got nothing for STARVED_SECONDS gets the next part, whatever its deadline.
- Loads ahead of any call have half of the connections at most, so that an urgent one finds some.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection
from dataclasses import dataclass

from stoker.runtime.checkpoint.bandwidth import Bandwidth

PART_SECONDS = 0.3
PART_BYTES_AT_FIRST = 2 << 20
PART_BYTES_MINIMUM = 1 << 20
PART_BYTES_MAXIMUM = 16 << 20
STARVED_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes [begin, end) of chunk `ordinal`."""

    ordinal: int
    begin: int
    end: int


class Queue:
    """What one load has still to fetch. Times are of one monotonic clock, in seconds."""

    def __init__(self, deadline: float | None, now: float, *, ahead: bool = False) -> None:
        self.ahead = ahead
        self.urgency = (math.inf if deadline is None else deadline, now)
        self.served_at = now
        self.bytes = 0
        self._parts: list[tuple[int, int, int]] = []

    def add(self, ordinal: int, byte_count: int) -> None:
        heapq.heappush(self._parts, (ordinal, 0, byte_count))
        self.bytes += byte_count

    def hasten(self, deadline: float | None) -> None:
        """Somebody else waits for it, until `deadline` if any; an earlier deadline stays."""
        self.ahead = False
        if deadline is not None:
            self.urgency = min(self.urgency, (deadline, self.urgency[1]))

    def clear(self) -> None:
        self._parts.clear()
        self.bytes = 0

    def take(self, part_bytes: int, now: float) -> Part:
        """The next part, about `part_bytes` long: what is left of a chunk is no crumb."""
        ordinal, begin, end = self._parts[0]
        cut = begin + part_bytes
        if end - cut < part_bytes // 2:
            heapq.heappop(self._parts)
            cut = end
        else:
            heapq.heapreplace(self._parts, (ordinal, cut, end))
        self.bytes -= cut - begin
        self.served_at = now
        return Part(ordinal, begin, cut)


def next_queue(queues: Collection[Queue], now: float) -> Queue | None:
    """Which load gets the next part; None when nothing is queued."""
    waiting = [queue for queue in queues if queue.bytes]
    starved = [queue for queue in waiting if now - queue.served_at >= STARVED_SECONDS]
    if starved:
        return min(starved, key=lambda queue: queue.served_at)
    return min(waiting, key=lambda queue: queue.urgency, default=None)


class PartSize:
    """Learns how large a part should be from those that came."""

    def __init__(self) -> None:
        self._of_connection = Bandwidth()

    @property
    def bytes_per_second(self) -> float:
        """Of one connection; 0 until known."""
        return self._of_connection.bytes_per_second

    @property
    def bytes(self) -> int:
        """A power of two, so that the parts of a chunk are even."""
        expected = self.bytes_per_second * PART_SECONDS
        if not expected:
            return PART_BYTES_AT_FIRST
        even = 1 << int(math.log2(max(expected, PART_BYTES_MINIMUM)))
        return min(even, PART_BYTES_MAXIMUM)

    def record(self, byte_count: int, seconds: float) -> None:
        self._of_connection.record(byte_count, seconds)
