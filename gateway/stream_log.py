"""The log of a stream that passes: its lines are kept here, and the events go on without them."""

from __future__ import annotations

from stoker.gateway.sse import EventRelay
from stoker.placement.resumable import LINE, StreamLog

_NEXT_LINE = b"\n" + LINE


class LoggedEvents:
    """Whole events, without the lines that tell how to go on. Used like an EventRelay."""

    def __init__(self, log: StreamLog) -> None:
        self._log = log
        self._relay = EventRelay()

    def feed(self, chunk: bytes) -> bytes:
        """What may go on now that `chunk` came; ValueError if its lines say nothing."""
        return self._without_lines(self._relay.feed(chunk))

    def rest(self) -> bytes:
        """What is still held, when the stream ended well."""
        return self._without_lines(self._relay.rest())

    def _without_lines(self, events: bytes) -> bytes:
        kept = []
        while True:
            while events.startswith(LINE):
                line, _, events = events.partition(b"\n")
                self._log.note(line[len(LINE) :])
            # Text of an answer has no line ends of its own, so this is where a line begins.
            at = events.find(_NEXT_LINE) + 1
            if not at:
                break
            kept.append(events[:at])
            events = events[at:]
        return b"".join([*kept, events]) if kept else events
