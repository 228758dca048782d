import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.placement.link_queues import Link, LinkQueues

ROW = 1


def queues(*loads: tuple[str, float, float]) -> LinkQueues:
    """(key, seconds, deadline) of loads that were noted at 0."""
    made = LinkQueues()
    made.grow(2)
    for key, seconds, deadline in loads:
        made.note(Link.SSD, ROW, key, seconds, 0.0, deadline)
    return made


def left(made: LinkQueues, now: float) -> float:
    return float(made.seconds(Link.SSD, 2, now)[ROW])


@given(st.lists(st.floats(0.0, 9.0), max_size=5), st.floats(0.0, 50.0))
def test_loads_drain_one_after_the_other(loads: list[float], age: float) -> None:
    made = queues(*((str(n), seconds, math.inf) for n, seconds in enumerate(loads)))
    assert left(made, age) == pytest.approx(max(0.0, sum(loads) - age))
    for number, seconds in enumerate(loads):
        before = sum(loads[:number])
        own, others = made.apart(Link.SSD, ROW, str(number), age)
        assert own == pytest.approx(min(seconds, max(0.0, before + seconds - age)))
        assert own + others == pytest.approx(left(made, age))


def test_what_is_noted_again_keeps_its_place_and_counts_from_then() -> None:
    made = queues(("a", 4.0, math.inf), ("b", 3.0, math.inf))
    made.note(Link.SSD, ROW, "a", 1.0, 2.0)
    assert left(made, 2.0) == pytest.approx(4.0)
    assert made.apart(Link.SSD, ROW, "b", 2.5) == (pytest.approx(3.0), pytest.approx(0.5))


def test_a_load_that_is_forgotten_leaves_the_others_as_far_as_they_are() -> None:
    made = queues(("a", 4.0, math.inf), ("b", 3.0, math.inf))
    made.forget(Link.SSD, ROW, "a", 1.0)
    assert left(made, 1.0) == pytest.approx(3.0)
    made.forget(Link.SSD, ROW, "b", 2.0)
    assert left(made, 2.0) == 0.0
    made.forget(Link.SSD, ROW, "b", 2.0)


def test_each_link_and_row_has_a_queue_of_its_own() -> None:
    made = queues(("a", 4.0, math.inf))
    assert made.seconds(Link.SSD, 2, 0.0).tolist() == [0.0, 4.0]
    assert made.seconds(Link.NET, 2, 0.0).tolist() == [0.0, 0.0]


@given(
    st.lists(st.tuples(st.floats(0.1, 9.0), st.floats(0.1, 60.0)), min_size=1, max_size=4),
    st.floats(0.0, 30.0),
)
def test_a_link_is_closed_while_one_more_load_would_break_a_promise(
    loads: list[tuple[float, float]], age: float
) -> None:
    made = queues(*((str(n), seconds, until) for n, (seconds, until) in enumerate(loads)))
    count = len(loads)
    # Each had 1 / n of the link until now and would have 1 / (n + 1) of it from now on.
    spare = [(until - age) / (count + 1) - (seconds - age / count) for seconds, until in loads]
    if min(spare) > 1e-6:
        assert not made.closed(Link.SSD, 2, age)[ROW]
    if min(spare) < -1e-6:
        assert made.closed(Link.SSD, 2, age)[ROW]


def test_what_promises_nothing_closes_nothing() -> None:
    assert not queues(("a", 100.0, math.inf)).closed(Link.SSD, 2, 0.0).any()
