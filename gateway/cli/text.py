"""Text of others on a terminal: names, logs and errors must not steer it."""

from __future__ import annotations

import re
import unicodedata

# All but tabs of the control characters, and what turns the direction of the text around it.
_STEERS = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def plain(text: str) -> str:
    r"""`text` in one line, with every character that could steer a terminal as `\x1b` or `\u202e`.

    Lone surrogates, which no terminal can be sent, are written the same way.
    """
    safe = _STEERS.sub(_escaped, text)
    if safe.isascii():
        return safe
    return "".join(_escape(c) if unicodedata.category(c) in ("Cs", "Co") else c for c in safe)


def _escaped(found: re.Match[str]) -> str:
    return _escape(found[0])


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
