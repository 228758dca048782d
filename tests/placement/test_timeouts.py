"""Timeouts and the hard limit of requests in flight, as annotations say them."""

from __future__ import annotations

import pytest

from stoker.placement.errors import BadSpec
from stoker.placement.spec_kpa import KNATIVE
from stoker.placement.spec_scaling import CONTAINER_KEY, scaling_of
from stoker.placement.timeouts import (
    IDLE_KEY,
    REQUEST_KEY,
    RESPONSE_START_KEY,
    Timeouts,
    timeouts_of,
)


def test_timeouts_are_durations_and_0_is_none() -> None:
    stated = {REQUEST_KEY: "5m", RESPONSE_START_KEY: "30", IDLE_KEY: "0"}

    assert timeouts_of(stated) == Timeouts(300.0, 30.0, None)
    assert timeouts_of({}) is None
    assert timeouts_of({IDLE_KEY: "0"}) is None


@pytest.mark.parametrize("value", ["", "soon", "-1", "2000h"])
def test_a_timeout_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(BadSpec, match=REQUEST_KEY):
        timeouts_of({REQUEST_KEY: value})


@pytest.mark.parametrize(
    ("stated", "concurrency", "waiting", "target"),
    [
        ({CONTAINER_KEY: "1"}, 1, 10, 1.0),
        ({CONTAINER_KEY: "0"}, 1000, None, 100.0),
        ({CONTAINER_KEY: "4", KNATIVE + "target": "2"}, 4, 40, 2.0),
        ({CONTAINER_KEY: "4", KNATIVE + "target": "50"}, 4, 40, 4.0),
    ],
)
def test_a_hard_limit_bounds_the_target_and_who_may_wait(
    stated: dict[str, str], concurrency: int, waiting: int | None, target: float
) -> None:
    scaling = scaling_of({}, stated, is_model=False)

    assert (scaling.concurrency, scaling.queue_per_instance) == (concurrency, waiting)
    assert scaling.kpa is not None
    assert scaling.kpa.target == target


def test_without_a_hard_limit_nothing_changes() -> None:
    scaling = scaling_of({}, {KNATIVE + "target": "7"}, is_model=False)

    assert (scaling.concurrency, scaling.queue_per_instance, scaling.kpa) == (7, None, None)
