import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.placement.kpa import TICK_SECONDS, Decision, Kpa, Meter, State, decide

ONE = Kpa(target=1.0)


def follow(kpa: Kpa, meter: Meter, state: State, ready: int, now: float) -> Decision:
    stable, panic = meter.average(kpa.window_seconds, now), meter.average(6.0, now)
    assert stable is not None
    assert panic is not None
    return decide(kpa, state, ready, stable, panic, now)


def test_five_that_wait_at_zero_call_for_eight_and_leave_by_halves() -> None:
    """The upstream autoscaler's own numbers, with instances that are there at the next tick."""
    meter, state, ready, moves = Meter(ONE.window_seconds), State(), 0, []
    for tick in range(60):
        now = tick * TICK_SECONDS
        meter.set_level(0.0 if tick else 5.0, now)
        found = follow(ONE, meter, state, ready, now)
        if found.desired != ready:
            moves.append((now, found.desired))
        ready, state = found.desired, found.state
    assert moves == [(0.0, 8), (62.0, 4), (64.0, 2), (66.0, 1), (68.0, 0)]


def test_three_of_an_activation_scale_of_three_leave_for_one() -> None:
    kpa = dataclasses.replace(ONE, activation=3)
    assert decide(kpa, State(), 0, 1.0, 1.0, 0.0).desired == 3
    assert decide(kpa, State(), 3, 0.0, 0.0, 100.0).desired == 1


def test_panic_begins_at_twice_what_is_there_and_lets_nothing_go() -> None:
    calm = decide(ONE, State(), 4, 2.7, 4.8, 0.0)
    assert (calm.desired, calm.state.panic) == (4, None)
    over = decide(ONE, State(), 4, 2.7, 5.5, 0.0)
    assert (over.desired, over.state.panic is not None) == (8, True)
    for now, expected in ((2.0, 8), (60.0, 8), (60.1, 4)):
        assert decide(ONE, over.state, 8, 0.0, 0.0, now).desired == expected


def test_the_rates_bound_each_step() -> None:
    assert decide(ONE, State(), 100, 0.0, 0.0, 0.0).desired == 50
    assert decide(ONE, State(), 0, 1e6, 1e6, 0.0).desired == 1000


def test_the_delay_keeps_the_most_that_was_desired_within_it() -> None:
    kpa = dataclasses.replace(ONE, down_delay_seconds=10.0)
    state, found = State(), []
    for now, load in ((0.0, 2.7), (2.0, 1.3), (4.0, 2.0), (9.9, 0.6), (10.0, 0.6), (14.0, 0.6)):
        made = decide(kpa, state, 4, load, load, now)
        found.append(made.desired)
        state = made.state
    assert found == [4, 4, 4, 4, 3, 2]


@pytest.mark.parametrize(
    ("burst", "ready", "panic", "expected"),
    [(0.0, 3, 9.0, 0.0), (-1.0, 3, 0.0, -1.0), (211.0, 3, 5.5, 83.0), (211.0, 2, 0.0, -11.0)],
)
def test_the_excess_burst_capacity_is_the_room_beyond_what_was_asked_for(
    burst: float, ready: int, panic: float, expected: float
) -> None:
    kpa = Kpa(burst_capacity=burst)
    assert decide(kpa, State(), ready, 0.0, panic, 0.0).excess_burst == expected


def test_the_panic_window_is_a_share_of_the_stable_one_of_a_second_at_least() -> None:
    assert Kpa().panic_window_seconds == 6.0
    assert Kpa(window_seconds=6.0).panic_window_seconds == 1.0
    assert Kpa(target=0.001).target_load == 0.01


@given(
    st.integers(0, 50),
    st.floats(0, 1e4),
    st.floats(0, 1e4),
    st.floats(0.01, 100),
    st.integers(1, 9),
)
def test_more_load_never_calls_for_fewer(
    ready: int, stable: float, panic: float, target: float, activation: int
) -> None:
    kpa = Kpa(target=target, activation=activation)
    less = decide(kpa, State(), ready, stable, panic, 0.0).desired
    assert decide(kpa, State(), ready, 2 * stable, panic, 0.0).desired >= less
    assert decide(kpa, State(), ready, stable, 2 * panic, 0.0).desired >= less
    assert less >= (max(1, ready) // 2)


class TestMeter:
    def test_a_level_counts_for_as_long_as_it_lasts(self) -> None:
        meter = Meter(60.0)
        meter.set_level(4.0, 0.0)
        assert meter.average(60.0, 0.0) == 4.0
        meter.set_level(0.0, 3.0)
        assert meter.average(6.0, 6.0) == pytest.approx(2.0)
        assert meter.average(60.0, 30.0) == pytest.approx(0.4)

    def test_events_are_counted_per_second(self) -> None:
        meter = Meter(60.0)
        for second in range(30):
            meter.add(7.0, float(second))
        assert meter.average(6.0, 29.99) == pytest.approx(7.0, rel=0.01)
        assert meter.average(60.0, 30.0) == pytest.approx(7.0)

    def test_an_event_that_just_came_counts_as_one_seconds(self) -> None:
        meter = Meter(60.0)
        meter.add(5.0, 100.0)
        assert meter.average(6.0, 100.0) == 5.0

    def test_a_silent_window_tells_nothing_and_is_forgotten(self) -> None:
        meter = Meter(60.0)
        assert meter.average(60.0, 5.0) is None
        meter.set_level(3.0, 10.0)
        assert meter.average(60.0, 69.0) == pytest.approx(3.0)
        assert meter.average(60.0, 70.0) is None
        meter.set_level(2.0, 100.0)
        assert meter.average(60.0, 110.0) == pytest.approx(2.0)

    @given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 20)), min_size=1, max_size=200))
    def test_it_stays_bounded_and_between_its_extremes(
        self, steps: list[tuple[float, float]]
    ) -> None:
        meter, now = Meter(60.0), 0.0
        for gap, level in steps:
            now += gap
            meter.set_level(level, now)
        found = meter.average(60.0, now)
        assert found is not None
        levels = [level for _, level in steps]
        assert min(levels) - 1e-6 <= found <= max(levels) + 1e-6
        assert len(meter._marks) <= 63
