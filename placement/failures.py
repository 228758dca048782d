"""Starts that fail in a row: how long to wait before the next, and when to stop. Pure.

What may pass by itself (a source out of reach or too slow, a full disk) is tried again for ever,
ever more seldom; a function whose own fault it is has so many tries, until somebody changes
something.
"""

from __future__ import annotations

from dataclasses import replace

from stoker.placement.errors import (
    CrashLoop,
    DeadlineExceeded,
    Fenced,
    StokerError,
    Unavailable,
)
from stoker.placement.records import FailureRecord, InstanceRecord

CRASHES_MAXIMUM = 5
PAUSE_SECONDS_FIRST = 1.0
PAUSE_SECONDS_LAST = 60.0
# An instance that has served for so long did not fail to start, however it ends.
SETTLED_SECONDS = 10.0
_MAY_PASS = (Unavailable, DeadlineExceeded, Fenced)


def next_failure(
    last: FailureRecord | None,
    function_version: int,
    instance: InstanceRecord,
    error: StokerError,
    now: float,
) -> FailureRecord:
    """What is known after `instance` failed to start with `error`."""
    count = last.count + 1 if last else 1
    crashes = (last.crashes if last else 0) + (not isinstance(error, _MAY_PASS))
    pause = min(PAUSE_SECONDS_FIRST * 2.0 ** min(count - 1, 16), PAUSE_SECONDS_LAST)
    return FailureRecord(
        function=instance.function,
        function_version=function_version,
        instance_id=instance.instance_id,
        node_id=instance.node_id,
        count=count,
        crashes=crashes,
        error=error.to_wire(),
        failed_at=now,
        retry_at=None if crashes >= CRASHES_MAXIMUM else now + pause,
    )


def taken_over(failure: FailureRecord, now: float) -> FailureRecord:
    """What another leader noted, by whose clock nothing waits longer than by our own."""
    retry_at = failure.retry_at
    if retry_at is not None:
        retry_at = min(retry_at, now + PAUSE_SECONDS_LAST)
    return replace(failure, failed_at=min(failure.failed_at, now), retry_at=retry_at)


def holds_back(failure: FailureRecord, now: float) -> bool:
    """Whether it is too early for the next start."""
    return failure.retry_at is None or now < failure.retry_at


def refusal(failure: FailureRecord, now: float) -> StokerError:
    """What a client is told who asks for a start meanwhile."""
    error = StokerError.from_wire(failure.error)
    if failure.retry_at is not None:
        error.retry_after_seconds = max(0.0, failure.retry_at - now)
        return error
    return CrashLoop(
        f"{failure.function} failed to start {failure.count} times in a row and is not started "
        f"again. The last time: {error.cause}",
        "Read its log, correct it and deploy it again, or scale it up to try once more.",
        last_code=error.code,
        last_remedy=error.remedy,
    )
