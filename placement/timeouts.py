"""How long requests of a function may take, as its annotations say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stoker.placement.spec_fields import PREFIX, duration_seconds, refuse

REQUEST_KEY = PREFIX + "timeout"
RESPONSE_START_KEY = PREFIX + "response-start-timeout"
IDLE_KEY = PREFIX + "idle-timeout"
SECONDS_MAXIMUM = 86_400.0


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds from a request's arrival, its wait for an instance included; None: not limited.

    `request_seconds` is to the end of its answer, `response_start_seconds` to the head of that.
    `idle_seconds` is from one piece of the answer to the next.
    """

    request_seconds: float | None = None
    response_start_seconds: float | None = None
    idle_seconds: float | None = None


def timeouts_of(annotations: Mapping[str, str]) -> Timeouts | None:
    """What the annotations say, None if nothing; BadSpec for a value that is no duration."""
    request, start, idle = (
        _seconds(annotations, key) for key in (REQUEST_KEY, RESPONSE_START_KEY, IDLE_KEY)
    )
    found = Timeouts(request, start, idle)
    return None if found == Timeouts() else found


def _seconds(annotations: Mapping[str, str], key: str) -> float | None:
    """The duration, None if there is none or it is 0: not limited."""
    text = annotations.get(key)
    if text is None:
        return None
    seconds = duration_seconds(text)
    if seconds is None or seconds > SECONDS_MAXIMUM:
        refuse(key, f"seconds or a duration such as 5m, at most {SECONDS_MAXIMUM:.0f} s", text)
    return seconds or None
