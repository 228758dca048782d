"""Whole events go on, halves wait."""

from __future__ import annotations

import pytest

from stoker.gateway.sse import HELD_BYTES_MAXIMUM, EventRelay


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_what_goes_on_always_ends_with_an_event(end: bytes, size: int) -> None:
    text = b"".join(b"data: %d%s" % (number, end) for number in range(9)) + b"data: rest"
    relay, passed = EventRelay(), b""
    for begin in range(0, len(text), size):
        part = relay.feed(text[begin : begin + size])
        assert not part or part.endswith(end)
        passed += part
    assert passed.endswith(b"8" + end)
    assert passed + relay.rest() == text


def test_an_endless_event_is_not_held_for_ever() -> None:
    assert len(EventRelay().feed(b"x" * (HELD_BYTES_MAXIMUM + 1))) == HELD_BYTES_MAXIMUM + 1
