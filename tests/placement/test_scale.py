import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.placement.autoscaler import Autoscaled
from stoker.placement.histogram import Window
from stoker.placement.kpa import Kpa
from stoker.placement.records import FunctionRecord, Scaling
from stoker.placement.retention import Retention
from stoker.placement.scale import Demand, band, called_for, desired, needed, startable

FUNCTION = FunctionRecord(
    "f", "ns", "img", scaling=Scaling(minimum=0, maximum=4, concurrency=2, idle_seconds=60.0)
)
MINIMUM_1 = dataclasses.replace(
    FUNCTION, scaling=Scaling(minimum=1, maximum=4, concurrency=2, idle_seconds=60.0)
)
NOW = 1000.0


def asked(function: FunctionRecord, replicas: int) -> FunctionRecord:
    return dataclasses.replace(function, replicas_requested=replicas)


@pytest.mark.parametrize(
    ("in_flight", "queued", "expected"),
    [(0, 0, 0), (1, 0, 1), (0, 1, 1), (2, 0, 1), (2, 1, 2), (5, 2, 4), (100, 100, 4)],
)
def test_demand_needs_its_share_of_the_concurrency_up_to_the_maximum(
    in_flight: int, queued: int, expected: int
) -> None:
    assert needed(FUNCTION, Demand(in_flight, queued)) == expected
    assert desired(FUNCTION, Demand(in_flight, queued), 0, NOW) == expected


def test_deploying_starts_nothing_unless_a_minimum_is_set() -> None:
    assert desired(FUNCTION, Demand(), 0, NOW) == 0
    assert desired(MINIMUM_1, Demand(), 0, NOW) == 1


def test_an_idle_instance_stays_until_its_idle_time_has_passed() -> None:
    assert desired(FUNCTION, Demand(last_needed=(NOW - 59.0,)), 1, NOW) == 1
    assert desired(FUNCTION, Demand(last_needed=(NOW - 60.0,)), 1, NOW) == 0


def test_the_minimum_stays_when_the_idle_time_has_passed() -> None:
    assert desired(MINIMUM_1, Demand(last_needed=(0.0, 0.0)), 2, NOW) == 1


def test_recent_use_keeps_an_instance_but_does_not_start_one() -> None:
    assert desired(FUNCTION, Demand(last_needed=(NOW,)), 0, NOW) == 0


def test_only_surplus_that_was_idle_long_enough_goes() -> None:
    demand = Demand(in_flight=1, last_needed=(NOW, NOW - 10.0, NOW - 70.0))
    assert desired(FUNCTION, demand, 3, NOW) == 2


def test_a_scale_request_is_a_floor_until_the_idle_time_has_passed() -> None:
    demand = Demand(requested_at=NOW)
    assert desired(asked(FUNCTION, 3), demand, 0, NOW + 59.0) == 3
    assert desired(asked(FUNCTION, 3), demand, 3, NOW + 60.0) == 0


def test_a_scale_request_is_bounded_by_minimum_and_maximum() -> None:
    assert startable(asked(FUNCTION, 9), Demand(requested_at=NOW), NOW) == 4
    two = dataclasses.replace(FUNCTION.scaling, minimum=2)
    function = dataclasses.replace(asked(FUNCTION, 1), scaling=two)
    assert startable(function, Demand(requested_at=NOW), NOW) == 2


def test_scaling_to_zero_stops_what_was_kept_and_overrules_the_minimum() -> None:
    demand = Demand(last_needed=(NOW - 1.0, NOW - 1.0), requested_at=NOW)
    assert desired(asked(FUNCTION, 0), demand, 2, NOW) == 0
    assert desired(asked(MINIMUM_1, 0), demand, 2, NOW + 500.0) == 0


def test_scaling_to_zero_does_not_stop_what_has_requests_in_flight() -> None:
    demand = Demand(in_flight=3, last_needed=(NOW - 1.0, NOW - 1.0), requested_at=NOW)
    assert desired(asked(FUNCTION, 0), demand, 3, NOW) == 2


def test_a_call_after_scaling_to_zero_starts_and_keeps_an_instance_again() -> None:
    function = asked(MINIMUM_1, 0)
    called = Demand(queued=1, last_needed=(NOW + 5.0,), requested_at=NOW, called_since=True)
    assert desired(function, called, 0, NOW + 5.0) == 1
    after = Demand(last_needed=(NOW + 5.0,), requested_at=NOW, called_since=True)
    assert desired(function, after, 1, NOW + 30.0) == 1


def test_a_call_that_began_before_scaling_to_zero_keeps_nothing_when_it_ends() -> None:
    ended = Demand(last_needed=(NOW + 5.0,), requested_at=NOW)
    assert desired(asked(FUNCTION, 0), ended, 1, NOW + 6.0) == 0
    assert desired(asked(MINIMUM_1, 0), ended, 1, NOW + 6.0) == 0


def test_scaling_down_to_one_stops_the_others_at_once() -> None:
    demand = Demand(last_needed=(NOW - 1.0,) * 3, requested_at=NOW)
    assert desired(asked(FUNCTION, 1), demand, 3, NOW) == 1


LEARNT = dataclasses.replace(FUNCTION, scaling=Scaling(maximum=4, concurrency=2))
HOURLY = Retention(60.0, Window(3240.0, 4026.0))


def last_called(seconds_ago: float, keep: Retention = HOURLY, **fields: float) -> Demand:
    return Demand(last_needed=(NOW - seconds_ago,), retention=keep, **fields)


@pytest.mark.parametrize(
    ("seconds_ago", "existing", "expected"),
    [
        (59.0, 1, 1),  # it just ended
        (60.0, 1, 0),  # nobody is expected for an hour
        (3239.0, 0, 0),
        (3240.0, 0, 1),  # it starts ahead of the next request
        (4025.0, 1, 1),
        (4026.0, 1, 0),  # the request did not come
    ],
)
def test_a_regular_function_is_there_when_its_next_request_is_due(
    seconds_ago: float, existing: int, expected: int
) -> None:
    demand = last_called(seconds_ago)
    assert desired(LEARNT, demand, existing, NOW) == expected
    assert called_for(LEARNT, demand, NOW) == 0


def test_a_slow_start_begins_sooner() -> None:
    assert desired(LEARNT, last_called(3100.0), 0, NOW) == 0
    assert desired(LEARNT, last_called(3100.0), 0, NOW, lead_seconds=500.0) == 1


def test_how_long_an_instance_stays_is_the_users_word_if_he_said_it() -> None:
    for seconds_ago, expected in ((59.0, 1), (60.0, 0), (3240.0, 0)):
        for keep in (HOURLY, Retention(4000.0)):
            assert desired(FUNCTION, last_called(seconds_ago, keep), 1, NOW) == expected
    assert desired(LEARNT, last_called(3999.0, Retention(4000.0)), 1, NOW) == 1
    assert desired(MINIMUM_1, last_called(61.0), 1, NOW) == 1


def test_after_a_scale_request_nothing_starts_ahead_until_the_next_call() -> None:
    for replicas, expected in ((0, 0), (2, 2)):
        demand = last_called(3300.0, requested_at=NOW - 100.0)
        assert desired(asked(LEARNT, replicas), demand, 0, NOW) == expected
    demand = last_called(3300.0, requested_at=NOW - 3400.0, called_since=True)
    assert desired(asked(LEARNT, 0), demand, 0, NOW) == 1


def test_a_scale_request_holds_for_five_minutes_where_nothing_is_said() -> None:
    demand = last_called(2000.0, requested_at=NOW - 299.0)
    assert desired(asked(LEARNT, 3), demand, 0, NOW) == 3
    demand = last_called(2000.0, requested_at=NOW - 300.0)
    assert desired(asked(LEARNT, 3), demand, 3, NOW) == 0


@given(
    minimum=st.integers(0, 4),
    extra=st.integers(0, 4),
    in_flight=st.integers(0, 50),
    queued=st.integers(0, 50),
    existing=st.integers(0, 10),
    ages=st.lists(st.floats(0, 200), max_size=6),
    replicas=st.none() | st.integers(0, 12),
)
def test_bounds_hold_whatever_was_asked(
    minimum: int,
    extra: int,
    in_flight: int,
    queued: int,
    existing: int,
    ages: list[float],
    replicas: int | None,
) -> None:
    scaling = Scaling(minimum, max(1, minimum + extra), 2, 60.0)
    function = dataclasses.replace(FUNCTION, scaling=scaling, replicas_requested=replicas)
    demand = Demand(in_flight, queued, tuple(NOW - age for age in ages), NOW - 30.0)
    found = desired(function, demand, existing, NOW)
    assert found <= scaling.maximum
    assert found >= needed(function, demand)
    if replicas != 0:
        assert found >= minimum
    if not demand.busy and replicas is None:
        assert found <= max(existing, minimum)


AVERAGED = dataclasses.replace(
    FUNCTION, scaling=Scaling(minimum=0, maximum=20, concurrency=1, kpa=Kpa(target=1.0))
)


@pytest.mark.parametrize(
    ("decision", "busy", "existing", "expected"),
    [
        (Autoscaled(8), 5, 0, 8),
        (Autoscaled(4), 0, 8, 4),
        (Autoscaled(40), 9, 8, 20),  # its maximum
        (Autoscaled(0, NOW - 29.0), 0, 1, 1),  # grace
        (Autoscaled(0, NOW - 30.0), 0, 1, 0),
        (Autoscaled(0, NOW), 1, 0, 1),  # somebody waits
        (Autoscaled(None), 0, 3, 3),  # no data is no decision
        (None, 0, 2, 2),
    ],
)
def test_averages_decide_where_the_function_says_so(
    decision: Autoscaled | None, busy: int, existing: int, expected: int
) -> None:
    demand = Demand(queued=busy, autoscaled=decision, last_needed=(NOW,) * 9)
    assert desired(AVERAGED, demand, existing, NOW) == expected


def test_the_retention_period_outlasts_the_grace() -> None:
    scaling = dataclasses.replace(AVERAGED.scaling, idle_seconds=50.0)
    function = dataclasses.replace(AVERAGED, scaling=scaling)
    for since, expected in ((49.0, 1), (50.0, 0)):
        demand = Demand(autoscaled=Autoscaled(0, NOW - since))
        assert desired(function, demand, 1, NOW) == expected


def test_scaling_to_zero_overrules_the_averages() -> None:
    demand = Demand(autoscaled=Autoscaled(0, NOW), requested_at=NOW)
    assert desired(asked(AVERAGED, 0), demand, 3, NOW) == 0


MODEL = dataclasses.replace(
    FUNCTION, scaling=Scaling(maximum=9, concurrency=10, idle_seconds=60.0, llm=True)
)


def test_a_model_goes_to_the_middle_of_its_band_at_once() -> None:
    assert desired(MODEL, Demand(in_flight=10, queued=14), 1, NOW) == 4  # of 3 to 5
    assert desired(MODEL, Demand(in_flight=30), 4, NOW) == 4
    assert desired(MODEL, Demand(in_flight=200), 4, NOW) == 9


def test_what_is_loading_counts_as_there() -> None:
    assert startable(MODEL, Demand(in_flight=8), NOW) == 1
    assert desired(MODEL, Demand(in_flight=16, queued=8), 3, NOW) == 3


def test_a_model_lets_instances_go_one_at_a_time_and_only_above_its_band() -> None:
    long_ago = (NOW - 300.0,) * 6
    quiet = Demand(in_flight=10, last_needed=long_ago)
    assert [desired(MODEL, quiet, n, NOW) for n in (6, 5, 3, 2)] == [5, 4, 2, 2]
    idle = Demand(last_needed=long_ago)
    assert [desired(MODEL, idle, n, NOW) for n in (3, 2, 1)] == [2, 1, 0]
    recent = Demand(last_needed=(NOW - 10.0, NOW - 10.0, NOW - 100.0))
    assert [desired(MODEL, recent, n, NOW) for n in (4, 3, 2)] == [3, 2, 2]


def test_waiting_prompts_count_by_their_tokens() -> None:
    short = Demand(in_flight=8, queued=4, queued_tokens=100, start_seconds=2.0)
    assert band(MODEL, short)[0] == 2
    long = dataclasses.replace(short, queued_tokens=8000)
    assert band(MODEL, long)[0] == 5


def test_few_requests_per_instance_leave_no_room_in_the_band() -> None:
    scaling = dataclasses.replace(MODEL.scaling, concurrency=1)
    function = dataclasses.replace(MODEL, scaling=scaling)
    assert desired(function, Demand(queued=5), 0, NOW) == 5


BY_CALLS = dataclasses.replace(
    MINIMUM_1,
    scaling=dataclasses.replace(MINIMUM_1.scaling, kpa=Kpa("rps", 5.0, alone=False)),
)


def test_averages_beside_the_requests_of_the_moment_only_add_to_them() -> None:
    often = Autoscaled(desired=2)
    assert desired(BY_CALLS, Demand(in_flight=1, autoscaled=often), 1, NOW) == 2
    assert desired(BY_CALLS, Demand(in_flight=5, autoscaled=often), 1, NOW) == 3
    assert desired(BY_CALLS, Demand(last_needed=(NOW,), autoscaled=Autoscaled(0)), 2, NOW) == 1
    assert desired(BY_CALLS, Demand(), 0, NOW) == 1


def test_averages_beside_requests_keep_no_last_instance_and_nothing_that_a_client_ended() -> None:
    zero = dataclasses.replace(
        BY_CALLS, scaling=dataclasses.replace(BY_CALLS.scaling, minimum=0), replicas_requested=0
    )
    unasked = dataclasses.replace(zero, replicas_requested=None)
    assert desired(unasked, Demand(autoscaled=Autoscaled(desired=1)), 1, NOW) == 0
    assert desired(unasked, Demand(autoscaled=Autoscaled(desired=3)), 1, NOW) == 3
    scaled = Demand(requested_at=NOW, autoscaled=Autoscaled(desired=3))
    assert desired(zero, scaled, 3, NOW) == 0
    called = dataclasses.replace(scaled, called_since=True)
    assert desired(zero, called, 3, NOW) == 3
