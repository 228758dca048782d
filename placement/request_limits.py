"""Limits of requests as people write them: annotations of a function, fields of a token."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

from stoker.placement.errors import BadRequest
from stoker.placement.spec_fields import PREFIX, number, whole_number
from stoker.placement.token_record import RequestLimits

RATE_KEY = PREFIX + "requests-per-second"
CONCURRENCY_KEY = PREFIX + "concurrency-limit"
QUEUE_KEY = PREFIX + "queue-limit"

REQUESTS_PER_SECOND_MAXIMUM = 1_000_000
CONCURRENCY_MAXIMUM = 100_000
QUEUE_LENGTH_MAXIMUM = 1000
# One request in three hours is no rate any more.
_RATE_MINIMUM = 0.0001
NONE = RequestLimits()


def limits_of(annotations: Mapping[str, str]) -> RequestLimits:
    """What the annotations of a function say; BadSpec for a value that is none."""
    return _limits(*(annotations.get(key) for key in (RATE_KEY, CONCURRENCY_KEY, QUEUE_KEY)))


@functools.lru_cache(1024)
def _limits(rate: str | None, concurrency: str | None, queue: str | None) -> RequestLimits:
    most = REQUESTS_PER_SECOND_MAXIMUM
    return RequestLimits(
        None if rate is None else number(RATE_KEY, rate, _RATE_MINIMUM, most, "requests"),
        None
        if concurrency is None
        else whole_number(CONCURRENCY_KEY, concurrency, 1, CONCURRENCY_MAXIMUM, "requests"),
        NONE.queue_length
        if queue is None
        else whole_number(QUEUE_KEY, queue, 0, QUEUE_LENGTH_MAXIMUM, "requests"),
    )


def limits_of_json(value: Any) -> RequestLimits:
    """What a JSON object of requestsPerSecond, concurrency, queueLength says; BadRequest."""
    fields = {} if value is None else value
    known = {"requestsPerSecond", "concurrency", "queueLength"}
    if not isinstance(fields, dict) or not fields.keys() <= known:
        raise BadRequest(
            f"Expected an object of {', '.join(sorted(known))} at limits, found {value!r:.100}.",
            "Correct limits.",
        )
    waiting = _whole(fields, "queueLength", 0, QUEUE_LENGTH_MAXIMUM)
    return RequestLimits(
        _at_most(fields, "requestsPerSecond", _RATE_MINIMUM, REQUESTS_PER_SECOND_MAXIMUM),
        _whole(fields, "concurrency", 1, CONCURRENCY_MAXIMUM),
        NONE.queue_length if waiting is None else waiting,
    )


def _at_most(fields: Mapping[str, Any], key: str, least: float, most: float) -> float | None:
    value = fields.get(key)
    if value is None:
        return None
    if type(value) not in (int, float) or not math.isfinite(value) or not least <= value <= most:
        raise BadRequest(
            f"Expected a number from {least:g} to {most:g} at limits.{key}, found {value!r:.40}.",
            f"Correct {key}.",
        )
    return float(value)


def _whole(fields: Mapping[str, Any], key: str, least: int, most: int) -> int | None:
    value = _at_most(fields, key, least, most)
    if value is not None and value != int(value):
        raise BadRequest(f"Expected a whole number at limits.{key}, found {value!r:.40}.")
    return None if value is None else int(value)
