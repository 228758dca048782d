r"""Server-sent events in passing: only whole events go on, so that an error can follow any of them.

...data: {"a":1}\n\ndata: {"b"     a chunk as it came
^^^^^^^^^^^^^^^^^^^^^                goes on at once
                     ^^^^^^^^^^     held until the rest of its event comes
"""

from __future__ import annotations

from typing import Protocol

HELD_BYTES_MAXIMUM = 1024 * 1024
_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")


class Events(Protocol):
    """Passes whole events on."""

    def feed(self, chunk: bytes) -> bytes: ...

    def rest(self) -> bytes: ...


class EventRelay:
    """Passes chunks on, holding back at most one event that is not whole yet."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """What may go on now that `chunk` came."""
        if not self._held and chunk.endswith(_ENDS[0]):
            return chunk
        data = self._held + chunk
        end = max(_end_after(data, mark) for mark in _ENDS)
        if len(data) - end > HELD_BYTES_MAXIMUM:
            end = len(data)
        self._held = data[end:]
        return data[:end]

    def rest(self) -> bytes:
        """What is still held, when the stream ended well."""
        return self._held


def _end_after(data: bytes, mark: bytes) -> int:
    found = data.rfind(mark)
    return found + len(mark) if found >= 0 else 0


def error_event(payload: bytes) -> bytes:
    return b"data: " + payload + b"\n\n"
