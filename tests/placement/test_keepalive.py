import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.placement.keepalive import (
    RAINBOWCAKE_PRICE,
    Arrivals,
    ageing_rate,
    break_even_seconds,
    greedy_dual,
    interval_seconds,
    rainbowcake_seconds,
    waiting_cost,
    worthwhile_seconds,
)
from stoker.placement.ladder import Layer, Rung

MB = 1_000_000
positive = st.floats(0.01, 1e6)


def layer(seconds: float, byte_count: int) -> Layer:
    return Layer(Rung.HOST, "model", byte_count, seconds)


def test_the_break_even_time_is_cost_over_the_price_of_holding() -> None:
    assert break_even_seconds(layer(2.0, 100), byte_seconds_per_second=5000.0) == 100.0


def test_rainbowcake_holds_a_megabyte_249_seconds_for_each_of_its_start() -> None:
    assert break_even_seconds(layer(1.0, MB), RAINBOWCAKE_PRICE) == pytest.approx(249.0)


@pytest.mark.parametrize(
    ("rate", "break_even", "expected"),
    [
        (None, 100.0, 600.0),  # nothing known
        (0.1, 249.0, 60.0),  # ceil(-ln 0.2 / 0.1) = 17 s, raised to the minimum
        (0.01, 249.0, 161.0),  # ceil(160.94)
        (0.001, 249.0, 249.0),  # 1610 s, capped
        (0.1, 30.0, 30.0),  # the cap holds below the minimum too
    ],
)
def test_rainbowcake_waits_for_the_next_arrival_but_not_beyond_break_even(
    rate: float | None, break_even: float, expected: float
) -> None:
    assert rainbowcake_seconds(rate, break_even) == expected


def test_the_interval_is_the_80th_percentile_of_a_poisson_process() -> None:
    assert interval_seconds(1.0 / 1000.0) == math.ceil(1609.44)


def test_greedy_dual_is_clock_plus_frequency_times_cost_over_size() -> None:
    assert greedy_dual(clock=1.5, frequency=3, seconds=2.0, byte_count=4) == 3.0


def test_one_long_wait_costs_more_than_several_short_ones_of_the_same_length() -> None:
    assert waiting_cost(2.0, noticed=False) == pytest.approx(2.0**1.3)
    assert waiting_cost(3.0, noticed=True) == pytest.approx(4.0**1.3)
    assert waiting_cost(4.0, noticed=False) > 2.0 * waiting_cost(2.0, noticed=False)
    # For what is not noticed while it lasts, notice is what counts.
    assert waiting_cost(0.1, noticed=True) > 10.0 * waiting_cost(0.1, noticed=False)


def test_rates_are_of_the_last_arrivals_within_a_day() -> None:
    arrivals = Arrivals(maximum=3)
    assert arrivals.rate("model", 0.0) is None

    for at in (0.0, 10.0, 20.0, 40.0):
        arrivals.add("model", at)

    assert arrivals.seen("model", 60.0) == (3, 50.0)
    assert arrivals.rate("model", 60.0) == 3 / 50.0
    assert arrivals.seen("model", 86_425.0) == (1, 86_385.0)
    assert arrivals.rate("model", 86_441.0) is None


def test_the_rate_lies_between_frequency_and_recency() -> None:
    assert ageing_rate(count=16, age=400.0, idle=100.0) == pytest.approx(0.02)


@given(seconds=positive, size=st.integers(1, 10**12), price=st.floats(1.0, 1e12))
def test_what_was_called_once_is_kept_for_its_break_even_time(
    seconds: float, size: int, price: float
) -> None:
    kept = worthwhile_seconds(1, 0.0, seconds, size, price)

    assert kept == pytest.approx(break_even_seconds(layer(seconds, size), price))


@given(
    count=st.integers(1, 100),
    age=st.floats(0.0, 86400.0),
    seconds=positive,
    size=st.integers(1, 10**12),
    price=st.floats(1.0, 1e12),
)
def test_layers_are_kept_longer_the_more_they_save(
    count: int, age: float, seconds: float, size: int, price: float
) -> None:
    kept = worthwhile_seconds(count, age, seconds, size, price)

    assert kept >= 0.0
    for more in (
        worthwhile_seconds(count + 1, age, seconds, size, price),
        worthwhile_seconds(count, age, 2 * seconds, size, price),
        worthwhile_seconds(count, age, seconds, size, 2 * price),
        worthwhile_seconds(count, age / 2, seconds, size, price),
        worthwhile_seconds(count, age, seconds, max(1, size // 2), price),
    ):
        assert more >= kept
    assert worthwhile_seconds(count, age, seconds, size, math.inf) == math.inf


@given(count=st.integers(1, 100), age=positive, idle=positive, more=positive)
def test_a_rate_falls_while_nobody_calls(count: int, age: float, idle: float, more: float) -> None:
    assert ageing_rate(count, age + more, idle + more) <= ageing_rate(count, age, idle)
