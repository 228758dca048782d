"""From tokens to text that may be sent: whole characters only, and never a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Text of a growing token sequence, a piece per token.

    A token may hold part of a character, and how a token reads may depend on the one before it;
    so each step decodes a short window twice, with and without the new token, and text that
    ends in an incomplete character waits for the next token.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._read = 0

    def push(self, token: int) -> str:
        """The text that `token` completes, which may be empty."""
        self._window.append(token)
        known = self._decode(self._window[: self._read])
        text = self._decode(self._window)
        if len(text) <= len(known) or text.endswith(_REPLACEMENT):
            return ""
        self._window = self._window[self._read :]
        self._read = len(self._window)
        return text[len(known) :]

    def flush(self) -> str:
        """What is left at the end, less an incomplete last character."""
        known = self._decode(self._window[: self._read])
        text = self._decode(self._window)
        return text[len(known) :].rstrip(_REPLACEMENT)


class StopMatcher:
    """Passes text on until one of `stops` appears, across whatever pieces the text comes in.

    The longest end of the text that may be the start of a stop string is held back.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that may be sent now, and whether a stop string was reached."""
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """The text held back, at the end of the generation."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a proper start of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
