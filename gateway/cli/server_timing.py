"""Reads the Server-Timing header of an answer, and the events of an SSE body."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

STAGES = ("queue", "place", "fetch", "load", "init", "prefill")
_BAR_COLUMNS = 30


def parse_server_timing(header: str) -> dict[str, float]:
    """`fetch;dur=12.5, load;dur=3` as milliseconds by stage, in the order of the header."""
    stages: dict[str, float] = {}
    for entry in header.split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        for parameter in parameters:
            matched = re.fullmatch(r'dur="?(\d+(?:\.\d+)?)"?', parameter)
            if name and matched:
                stages[name] = float(matched.group(1))
    return stages


def waterfall(stages: dict[str, float]) -> list[tuple[str, str, str]]:
    """Rows of (stage, milliseconds, bar); each bar starts where the one before it ended."""
    total = sum(stages.values()) or 1.0
    rows = []
    begin = 0.0
    for name, milliseconds in stages.items():
        left = round(begin / total * _BAR_COLUMNS)
        width = round(milliseconds / total * _BAR_COLUMNS)
        rows.append((name, f"{milliseconds:.1f}", " " * left + "█" * width))
        begin += milliseconds
    rows.append(("total", f"{sum(stages.values()):.1f}", ""))
    return rows


def sse_data(lines: Iterable[bytes]) -> Iterator[str]:
    """The data of each event of an SSE body; comments and other fields are skipped."""
    pending: list[str] = []
    for line in lines:
        text = line.decode(errors="replace").rstrip("\r\n")
        if text.startswith("data:"):
            pending.append(text[5:].removeprefix(" "))
        elif not text and pending:
            yield "\n".join(pending)
            pending = []
    if pending:
        yield "\n".join(pending)


def delta_text(event: dict[str, Any]) -> str:
    """The text that one OpenAI stream event adds."""
    choices = event.get("choices") or [{}]
    choice = choices[0] if isinstance(choices[0], dict) else {}
    delta = choice.get("delta") or {}
    return str(delta.get("content") or choice.get("text") or "")


def decode_event(data: str) -> dict[str, Any] | None:
    """The JSON object of an event; None for `[DONE]` and what is not an object."""
    try:
        event = json.loads(data)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
