import pytest

from stoker.placement.errors import (
    CheckpointMissing,
    CrashLoop,
    DeadlineExceeded,
    Fenced,
    SourceUnavailable,
    StartFailed,
    StokerError,
    StorageFull,
)
from stoker.placement.failures import holds_back, next_failure, refusal
from stoker.placement.records import FailureRecord, InstanceRecord, decode, encode

INSTANCE = InstanceRecord("1-0", "f.ns", 1, "n", "n:1", "failed", 1, 0.0)
CRASH = StartFailed("It ended with exit code 3.", "Read the log.")


def after(*errors: StokerError) -> FailureRecord:
    last = None
    for error in errors:
        last = next_failure(last, 7, INSTANCE, error, 100.0)
    assert last is not None
    return last


@pytest.mark.parametrize(("crashes", "pause"), [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, None)])
def test_the_pause_doubles_and_the_fifth_crash_is_the_last(
    crashes: int, pause: float | None
) -> None:
    found = after(*[CRASH] * crashes)
    assert found.count == found.crashes == crashes
    assert found.retry_at == (None if pause is None else 100.0 + pause)


@pytest.mark.parametrize("error", [SourceUnavailable, StorageFull, DeadlineExceeded, Fenced])
def test_what_may_pass_by_itself_is_tried_for_ever_every_minute_at_last(
    error: type[StokerError],
) -> None:
    found = [after(*[error("It is not there.")] * n).retry_at for n in (1, 6, 7, 500)]
    assert found == [101.0, 132.0, 160.0, 160.0]


def test_only_crashes_count_towards_the_end() -> None:
    away = SourceUnavailable("S3 is silent.")
    assert after(away, CRASH, away, CRASH, CRASH, away, CRASH).retry_at == 160.0
    assert after(away, CRASH, CRASH, CRASH, CRASH, away, CheckpointMissing("x")).retry_at is None


def test_until_then_a_client_gets_the_last_error_and_when_to_come_again() -> None:
    error = refusal(after(CRASH, CRASH), 100.5)
    assert isinstance(error, StartFailed)
    assert (error.cause, error.retry_after_seconds) == (CRASH.cause, 1.5)
    assert holds_back(after(CRASH), 100.9)
    assert not holds_back(after(CRASH), 101.0)


def test_after_it_a_client_gets_the_reason_and_no_hope() -> None:
    found = after(*[CRASH] * 5)
    assert holds_back(found, 1e12)
    error = refusal(found, 1e12)
    assert isinstance(error, CrashLoop)
    assert (error.status, error.retry_after_seconds) == (503, None)
    assert "5 times in a row" in error.cause
    assert CRASH.cause in error.cause
    assert error.details == {"last_code": "start_failed", "last_remedy": "Read the log."}


def test_a_record_crosses_the_store_unchanged() -> None:
    for found in (after(CRASH), after(*[CRASH] * 5)):
        assert decode(FailureRecord, encode(found)) == found
        assert found.path == "/failures/ns/f"
