"""The annotations by which a function says how to ask whether it is healthy and ready.

`com.openfaas.health.http.*`: an instance that does not answer its health path is replaced.
`com.openfaas.ready.http.*`: one that does not answer its ready path gets no calls meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stoker.placement.spec_fields import duration_seconds, refuse, whole_number

HEALTH = "com.openfaas.health.http."
READY = "com.openfaas.ready.http."
PATH_CHARACTERS_MAXIMUM = 512
SECONDS_MAXIMUM = 3600.0
# As often at most: an answer takes a turn of the function.
PERIOD_SECONDS_MINIMUM = 0.1
COUNT_MAXIMUM = 1000


@dataclass(frozen=True, slots=True)
class Probe:
    """GET `path` every `period_seconds`; any status below 400 in time is a success.

    So many `successes` or `failures` in a row change how the instance is.
    """

    path: str
    delay_seconds: float
    period_seconds: float
    timeout_seconds: float
    successes: int
    failures: int


def health_probe(annotations: Mapping[str, str]) -> Probe | None:
    return _probe(annotations, HEALTH)


def ready_probe(annotations: Mapping[str, str]) -> Probe | None:
    return _probe(annotations, READY)


def _probe(annotations: Mapping[str, str], prefix: str) -> Probe | None:
    """None without a path; BadSpec for a value that is none."""
    path = annotations.get(prefix + "path")
    if path is None:
        return None
    if not path.startswith("/") or not path.isascii() or not path.isprintable() or " " in path:
        refuse(prefix + "path", "a path such as /healthz", path)
    if len(path) > PATH_CHARACTERS_MAXIMUM:
        refuse(prefix + "path", f"a path of at most {PATH_CHARACTERS_MAXIMUM} characters", path)
    return Probe(
        path=path,
        delay_seconds=_seconds(annotations, prefix + "initialDelaySeconds", 0.0, 0.0),
        period_seconds=_seconds(annotations, prefix + "periodSeconds", 2.0, PERIOD_SECONDS_MINIMUM),
        timeout_seconds=_seconds(annotations, prefix + "timeoutSeconds", 1.0, 0.01),
        successes=_count(annotations, prefix + "successThreshold", 1),
        failures=_count(annotations, prefix + "failureThreshold", 3),
    )


def _seconds(annotations: Mapping[str, str], key: str, default: float, least: float) -> float:
    text = annotations.get(key)
    if text is None:
        return default
    seconds = duration_seconds(text)
    if seconds is None or not least <= seconds <= SECONDS_MAXIMUM:
        refuse(key, f"seconds or a duration from {least:g}s to {SECONDS_MAXIMUM:g}s", text)
    return seconds


def _count(annotations: Mapping[str, str], key: str, default: int) -> int:
    text = annotations.get(key)
    return default if text is None else whole_number(key, text, 1, COUNT_MAXIMUM, "times")
