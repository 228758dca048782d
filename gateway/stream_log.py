"""The log of a stream that passes: its lines are kept here, and the events go on without them."""

from __future__ import annotations

from stoker.gateway.exchange import Headers
from stoker.gateway.sse import EventRelay
from stoker.placement.errors import InstanceError
from stoker.placement.records import FunctionRecord
from stoker.placement.resumable import LINE, RESUMABLE_HEADER, RESUME_HEADER, StreamLog

_NEXT_LINE = b"\n" + LINE
_OF_THE_MODEL = ("task", "checkpoint", "adapter", "engine", "dtype")
_RESUMABLE = (RESUMABLE_HEADER.encode(), b"1")
_RESUME = (RESUME_HEADER.encode(), b"1")


def resumable(function: FunctionRecord) -> bool:
    """Whether its answers depend on the request and its model alone, token by token."""
    generates = function.task in ("chat", "completion")
    return generates and function.checkpoint is not None and function.code_digest is None


def same_model(one: FunctionRecord, other: FunctionRecord) -> bool:
    """Whether both answer alike, token for token."""
    return all(getattr(one, name) == getattr(other, name) for name in _OF_THE_MODEL)


def resume_of(log: StreamLog | None, body: bytes) -> tuple[Headers, bytes]:
    """What to add to a request's headers, and its body: to begin, or to go on behind `log`."""
    if log is None:
        return [], body
    return ([_RESUME], log.envelope(body)) if log.begun else ([_RESUMABLE], body)


class LoggedEvents:
    """Whole events, without the lines that tell how to go on. Used like an EventRelay."""

    def __init__(self, log: StreamLog) -> None:
        self._log = log
        self._relay = EventRelay()

    def feed(self, chunk: bytes) -> bytes:
        """What may go on now that `chunk` came; InstanceError if its lines say nothing."""
        return self._without_lines(self._relay.feed(chunk))

    def rest(self) -> bytes:
        """What is still held, when the stream ended well."""
        return self._without_lines(self._relay.rest())

    def _note(self, line: bytes) -> None:
        try:
            self._log.note(line)
        except ValueError as error:
            raise InstanceError(
                f"Expected a line of a stream's log, found {line[:80]!r}.",
                "Run workers and gateways of the same version.",
            ) from error

    def _without_lines(self, events: bytes) -> bytes:
        kept = []
        while True:
            while events.startswith(LINE):
                line, _, events = events.partition(b"\n")
                self._note(line[len(LINE) :])
            # Text of an answer has no line ends of its own, so this is where a line begins.
            at = events.find(_NEXT_LINE) + 1
            if not at:
                break
            kept.append(events[:at])
            events = events[at:]
        return b"".join([*kept, events]) if kept else events
