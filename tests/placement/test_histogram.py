import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.placement.histogram import BIN_SECONDS, BINS, IdleHistogram, IdleTimes, Window

HOUR = 3600.0


def of(*idle_seconds: float) -> IdleHistogram:
    histogram = IdleHistogram()
    for seconds in idle_seconds:
        histogram.add(seconds)
    return histogram


def test_the_window_is_that_of_the_example_worked_by_hand() -> None:
    """5 % reach minute 10, 99 % end with minute 31: 0.9 x 10 min and 1.1 x 31 min."""
    histogram = of(*[10.5 * 60] * 5, *[30.2 * 60] * 94, 59.9 * 60)

    # sqrt((5^2 + 94^2 + 1^2) / 240 - (100 / 240)^2) / (100 / 240)
    assert histogram.variation() == pytest.approx(14.5496, abs=1e-4)
    assert histogram.window() == Window(540.0, pytest.approx(2046.0))


def test_short_idle_times_are_never_unloaded_for() -> None:
    assert of(*[30.0] * 100).window() == Window(0.0, pytest.approx(66.0))


def test_few_or_evenly_spread_idle_times_keep_for_the_whole_range() -> None:
    few = of(*[600.0] * 9)
    spread = of(*[60.0 * minute for minute in range(240)])

    assert few.window() == spread.window() == Window(0.0, 4 * HOUR)
    assert spread.variation() == 0.0


def test_a_variation_of_two_is_enough_to_go_by() -> None:
    """Of 240 bins, 48 with one each: sqrt(1 / 5 - 1 / 25) / (1 / 5) = 2."""
    histogram = of(*[60.0 * minute for minute in range(24, 72)])

    assert histogram.variation() == pytest.approx(2.0)
    assert of(*[60.0 * minute for minute in range(24, 73)]).window() == Window(0.0, 4 * HOUR)


def test_idle_times_beyond_the_range_are_forecast() -> None:
    assert of(*[10 * HOUR] * 10).window() == Window(
        pytest.approx(8.5 * HOUR), pytest.approx(11.5 * HOUR)
    )
    assert of(*[10 * HOUR] * 5, *[600.0] * 5).window().prewarm_seconds == 540.0


def test_narrower_bins_make_everything_faster() -> None:
    slow, fast = of(*[10.5 * 60] * 10), IdleHistogram(bin_seconds=0.5)
    for _ in range(10):
        fast.add(10.5 * 0.5)

    assert slow.window() == Window(540.0, pytest.approx(726.0))
    assert fast.window() == Window(4.5, pytest.approx(6.05))
    assert IdleHistogram(0.5).window() == Window(0.0, 120.0)


def test_an_idle_time_is_from_the_end_of_a_request_to_the_next() -> None:
    idle = IdleTimes()
    idle.ends("f", 10.0)
    assert idle.histogram("f").samples == 0

    idle.begins("f", 20.0)
    idle.ends("f", 320.0)
    idle.ends("f", 900.0)
    assert idle.histogram("f").counts[5] == idle.histogram("f").samples == 1

    idle.forget("f")
    assert idle.histogram("f").samples == 0


@given(st.lists(st.floats(0.0, 3 * BINS * BIN_SECONDS), max_size=200))
def test_a_window_never_ends_before_it_begins(idle_seconds: list[float]) -> None:
    histogram = of(*idle_seconds)
    window = histogram.window()

    assert 0.0 <= window.prewarm_seconds < window.keep_seconds
    assert histogram.inside + histogram.outside == len(idle_seconds)
    assert sum(histogram.counts) == histogram.inside
