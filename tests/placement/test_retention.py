import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.placement.histogram import IdleHistogram, Window
from stoker.placement.retention import IDLE_SECONDS_DEFAULT, Retention, retention

HOUR = 3600.0
DAY = 24 * HOUR


def decide(
    idle_seconds: list[float],
    calls: int = 24,
    age: float = DAY,
    start: float = 0.5,
    bin_seconds: float = 60.0,
) -> Retention:
    histogram = IdleHistogram(bin_seconds)
    for seconds in idle_seconds:
        histogram.add(seconds)
    return retention(histogram, calls, age, start)


def test_an_instance_of_which_nothing_is_known_stays_for_five_minutes() -> None:
    assert IDLE_SECONDS_DEFAULT == 300.0
    assert Retention() == decide([]) == decide([HOUR] * 9) == Retention(300.0)


def test_a_function_called_every_hour_goes_at_once_and_comes_back_before_the_next() -> None:
    """0.9 x 60 min and 1.1 x 61 min."""
    assert decide([HOUR + 10.0] * 10) == Retention(60.0, Window(3240.0, pytest.approx(4026.0)))


def test_a_function_called_once_a_day_is_forecast() -> None:
    found = decide([DAY] * 10, calls=1, age=0.0)
    assert found.due == Window(pytest.approx(0.85 * DAY), pytest.approx(1.15 * DAY))


def test_within_its_break_even_time_a_regular_function_simply_stays() -> None:
    """24 calls within an hour, at 300 s: (sqrt(3600^2 + 4 x 24 x 300^2) - 3600) / 2 = 524 s."""
    assert decide([150.0] * 24, age=HOUR) == Retention(pytest.approx(1.1 * 180.0))
    assert decide([590.0] * 24, age=HOUR) == Retention(pytest.approx(660.0))
    assert decide([650.0] * 24, age=HOUR).due == Window(540.0, pytest.approx(726.0))


@pytest.mark.parametrize(
    ("start", "age", "expected"),
    [
        (0.5, HOUR, 523.8),  # as above
        (0.1, HOUR, 60.0),  # 24 s: a start costs little, a minute is the least
        (5.0, HOUR, 13006.8),  # a slow start is worth holding for hours
        (5.0, DAY, 2431.6),  # less, the seldomer it is called
        (50.0, DAY, 240 * 60.0),  # but not beyond what idle times are counted for
    ],
)
def test_an_unpredictable_function_stays_for_its_break_even_time(
    start: float, age: float, expected: float
) -> None:
    spread = [60.0 * minute for minute in range(0, 240, 3)]
    found = decide(spread, age=age, start=start)
    assert found == Retention(pytest.approx(expected, abs=0.1))


def test_an_instance_does_not_outlast_the_longest_idle_times() -> None:
    assert decide([20.0] * 50, age=HOUR, start=5.0) == Retention(pytest.approx(66.0))


def test_idle_times_from_minutes_to_hours_give_no_window() -> None:
    assert decide([600.0, *[HOUR] * 9, 3 * HOUR], start=5.0).due is None


def test_a_start_that_takes_longer_begins_sooner() -> None:
    hourly = decide([HOUR + 10.0] * 10)
    assert [hourly.expects(seconds) for seconds in (3239.0, 3240.0, 4026.0, 4027.0)] == [
        *(False, True, True, False)
    ]
    # 5 % of the requests have come after 3600 s.
    assert not hourly.expects(3099.0, lead_seconds=500.0)
    assert hourly.expects(3100.0, lead_seconds=500.0)
    assert not Retention().expects(3600.0)


@given(
    idle_seconds=st.lists(st.floats(0.0, 2 * DAY), max_size=60),
    calls=st.integers(0, 24),
    age=st.floats(0.0, DAY),
    start=st.floats(0.0, 600.0),
    bin_seconds=st.sampled_from([0.05, 1.0, 60.0]),
)
def test_decisions_are_bounded_and_their_own_repetition(
    idle_seconds: list[float], calls: int, age: float, start: float, bin_seconds: float
) -> None:
    found = decide(idle_seconds, calls, age, start, bin_seconds)
    assert found == decide(idle_seconds, calls, age, start, bin_seconds)
    longest = max([1.1 * 240 * bin_seconds, *(1.15 * seconds for seconds in idle_seconds)])
    assert bin_seconds <= found.keep_seconds <= longest * (1 + 1e-9)
    if found.due is not None:
        away = found.due.prewarm_seconds - found.keep_seconds
        assert away >= 0.0
        held = found.due.keep_seconds - found.due.prewarm_seconds
        assert held <= found.due.prewarm_seconds
