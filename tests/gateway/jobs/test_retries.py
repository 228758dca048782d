"""Whether a job runs again, and when."""

from __future__ import annotations

import pytest

from stoker.gateway.jobs.retries import (
    Retries,
    is_deferred,
    is_passing,
    retries_of,
    wait_seconds,
)
from stoker.placement.errors import (
    BadSpec,
    CoordinationLost,
    CrashLoop,
    InstanceLost,
    NoCapacity,
    QueueFull,
    RateLimited,
    Unavailable,
)


def test_a_function_that_says_nothing_has_the_defaults_of_openfaas() -> None:
    found = retries_of({"unrelated": "x"})
    assert found == Retries()
    assert (found.attempts, found.wait_seconds_minimum, found.wait_seconds_maximum) == (10, 10, 120)
    assert found.codes == {408, 429, 500, 502, 503, 504}


def test_annotations_replace_the_defaults_one_by_one() -> None:
    found = retries_of(
        {
            "com.openfaas.retry.attempts": "0",
            "com.openfaas.retry.codes": "429, 503",
            "com.openfaas.retry.min_wait": "500ms",
            "com.openfaas.retry.max_wait": "1m30s",
        }
    )
    assert found == Retries(0, frozenset({429, 503}), 0.5, 90.0)
    assert retries_of({"com.openfaas.retry.max_wait": "5s"}).wait_seconds_minimum == 5.0
    assert retries_of({"com.openfaas.retry.min_wait": "5m"}).wait_seconds_maximum == 300.0
    assert retries_of({"com.openfaas.retry.codes": ""}).codes == frozenset()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("attempts", "-1"), ("attempts", "many"), ("attempts", "1001")),
        *(("codes", "50x"), ("codes", "99"), ("codes", "429;503")),
        *(("min_wait", "0"), ("min_wait", "soon"), ("max_wait", "2h")),
    ],
)
def test_an_annotation_that_is_wrong_is_named(key: str, value: str) -> None:
    with pytest.raises(BadSpec, match=f"com.openfaas.retry.{key}"):
        retries_of({f"com.openfaas.retry.{key}": value})


def test_a_minimum_over_the_maximum_is_refused() -> None:
    waits = {"com.openfaas.retry.min_wait": "10s", "com.openfaas.retry.max_wait": "5s"}
    with pytest.raises(BadSpec, match="found 10 s and 5 s"):
        retries_of(waits)


def test_waits_double_up_to_the_maximum_and_are_spread() -> None:
    retries = Retries()
    longest = [wait_seconds(retries, run, 0.0, 1.0) for run in (1, 2, 3, 4, 5, 1000)]
    assert longest == [10.0, 20.0, 40.0, 80.0, 120.0, 120.0]
    shortest = [wait_seconds(retries, run, 0.0, 0.0) for run in (1, 2, 3, 4, 5, 1000)]
    assert shortest == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]


def test_an_answer_that_says_when_is_heeded_up_to_the_maximum() -> None:
    assert wait_seconds(Retries(), 1, 30.0, 0.0) == 30.0
    assert wait_seconds(Retries(), 1, 9999.0, 0.0) == 120.0


def test_what_found_no_room_is_no_run_for_a_day() -> None:
    for error in (
        Unavailable(""),
        QueueFull(""),
        RateLimited(""),
        NoCapacity(""),
        CoordinationLost(""),
    ):
        assert is_deferred(error, 86_000.0)
        assert not is_deferred(error, 87_000.0)
    for other in (CrashLoop(""), InstanceLost("")):
        assert not is_deferred(other, 0.0)


def test_errors_of_the_request_itself_do_not_pass() -> None:
    assert [
        status for status in (400, 401, 404, 408, 413, 429, 502, 504) if is_passing(status)
    ] == [*(408, 429, 502, 504)]
