"""Whether a job runs again after a run that failed, and when. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from stoker.placement.errors import (
    BadSpec,
    CoordinationLost,
    NoCapacity,
    QueueFull,
    StokerError,
    Unavailable,
)
from stoker.placement.spec_fields import duration_seconds, refuse, whole_number

PREFIX = "com.openfaas.retry."
KEYS = ("attempts", "codes", "min_wait", "max_wait")
ATTEMPTS_MAXIMUM = 1000
WAIT_SECONDS_MAXIMUM = 3600.0
# How long a job goes on waiting for a platform that has no room for it.
DEFERRED_SECONDS_MAXIMUM = 86_400.0


@dataclass(frozen=True, slots=True)
class Retries:
    """`attempts` is how often a job runs again after its first run; `codes` are HTTP statuses."""

    attempts: int = 10
    codes: frozenset[int] = frozenset({408, 429, 500, 502, 503, 504})
    wait_seconds_minimum: float = 10.0
    wait_seconds_maximum: float = 120.0


def retries_of(annotations: Mapping[str, str]) -> Retries:
    """The function's own, from its com.openfaas.retry.* annotations; BadSpec."""
    default = Retries()
    texts = {key: annotations.get(PREFIX + key) for key in KEYS}
    least = _wait_seconds("min_wait", texts["min_wait"], default.wait_seconds_minimum)
    most = _wait_seconds("max_wait", texts["max_wait"], max(least, default.wait_seconds_maximum))
    if texts["min_wait"] is None:
        least = min(least, most)
    if least > most:
        raise BadSpec(
            f"Expected {PREFIX}min_wait of at most {PREFIX}max_wait, found {least:g} s and "
            f"{most:g} s.",
            "Correct one of the two.",
        )
    attempts, codes = texts["attempts"], texts["codes"]
    return Retries(
        default.attempts
        if attempts is None
        else whole_number(PREFIX + "attempts", attempts, 0, ATTEMPTS_MAXIMUM, "attempts"),
        default.codes if codes is None else _codes(codes),
        least,
        most,
    )


def is_deferred(error: StokerError, waited_seconds: float) -> bool:
    """Whether the platform had no room for the job: that is no run of it, and is not counted."""
    full = isinstance(error, QueueFull | NoCapacity | CoordinationLost)
    return (full or type(error) is Unavailable) and waited_seconds < DEFERRED_SECONDS_MAXIMUM


def is_passing(status: int) -> bool:
    """Whether an error of the platform with this status may be another one next time."""
    return status >= 500 or status in (408, 429)


def wait_seconds(retries: Retries, runs: int, asked_seconds: float, draw: float) -> float:
    """The wait after run number `runs`: twice the one before, up to the maximum.

    At least half of it is waited, and `draw` (from 0 to 1) says how much of the rest, so that jobs
    that failed together do not come back together. `asked_seconds` is the answer's Retry-After.
    """
    doubled: float = retries.wait_seconds_minimum * 2.0 ** min(runs - 1, 60)
    wanted = min(doubled, retries.wait_seconds_maximum)
    asked = min(asked_seconds, retries.wait_seconds_maximum)
    return max(asked, wanted * (0.5 + 0.5 * draw))


def _wait_seconds(key: str, text: str | None, default: float) -> float:
    if text is None:
        return default
    found = duration_seconds(text)
    if found is None or not 0.0 < found <= WAIT_SECONDS_MAXIMUM:
        refuse(PREFIX + key, "a duration of more than 0 s and at most 1h", text)
    return found


def _codes(text: str) -> frozenset[int]:
    """`429,503`; empty for none."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(re.fullmatch(r"[1-5][0-9][0-9]", part, re.ASCII) for part in parts):
        refuse(PREFIX + "codes", "HTTP statuses with commas between them", text)
    return frozenset(int(part) for part in parts)
