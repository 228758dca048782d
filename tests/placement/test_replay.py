from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.placement.keepalive import Policy
from stoker.placement.ladder import Ladder, Layer, Rung, unshared, whole
from stoker.placement.policies import (
    BreakEven,
    Fixed,
    GreedyDual,
    HybridHistogram,
    Ladders,
    LeastRecentlyUsed,
    RainbowCake,
)
from stoker.placement.replay import Outcome, Request, replay

POLICIES: dict[str, Callable[[], Policy]] = {
    "fixed": Fixed,
    "least recently used": LeastRecentlyUsed,
    "break-even": lambda: BreakEven(5000.0),
    "hybrid histogram": HybridHistogram,
    "RainbowCake": lambda: RainbowCake(5000.0),
    "greedy-dual": GreedyDual,
    "Stoker": Ladders,
    "Stoker with a price": lambda: Ladders(5000.0),
}
DAY = 86400.0


def ladder(name: str, model: str = "", weight_bytes: int = 1000, seconds: float = 2.0) -> Ladder:
    return Ladder(
        name,
        (
            Layer(Rung.IMPORTED, "environment", 200, 3.0),
            Layer(Rung.SKELETON, f"{name}/skeleton", 60, 0.5),
            Layer(Rung.HOST, f"{model or name}/weights", weight_bytes, seconds),
            Layer(Rung.DEVICE, f"{name}/device", 0, 0.25),
            Layer(Rung.SERVING, f"{name}/serving", 100, 0.125),
        ),
    )


def run(
    ladders: list[Ladder], requests: list[Request], policy: Policy, capacity: int = 10**6
) -> Outcome:
    return replay({one.function: one for one in ladders}, requests, policy, capacity, DAY)


def every(seconds: float, function: str, first: float, count: int) -> list[Request]:
    return [Request(first + seconds * number, function, 10.0) for number in range(count)]


def test_the_first_request_waits_for_all_rungs_and_the_next_for_none() -> None:
    outcome = run([ladder("f")], every(100.0, "f", 0.0, 3), LeastRecentlyUsed())

    assert outcome.waits == [3.875, 0.0, 0.0]
    assert outcome.starts == {Rung.ABSENT: 1, Rung.SERVING: 2}
    assert (outcome.cold_starts(), outcome.all_starts()) == (1, 1)
    assert outcome.busy_seconds == pytest.approx(30.0)


def test_requests_that_come_during_a_start_wait_for_the_rest_of_it() -> None:
    outcome = run([ladder("f")], every(1.0, "f", 0.0, 5), LeastRecentlyUsed())

    assert outcome.waits == [3.875, 2.875, 1.875, 0.875, 0.0]
    assert outcome.starts == {Rung.ABSENT: 1}


def test_a_fixed_time_starts_anew_after_it() -> None:
    requests = [Request(0.0, "f", 10.0), Request(613.0, "f", 10.0), Request(1300.0, "f", 10.0)]

    outcome = run([whole(ladder("f"))], requests, Fixed(600.0))

    assert outcome.waits == [3.875, 0.0, 3.875]
    # From each start to 600 s after the last request that it served.
    assert outcome.byte_seconds == pytest.approx(1360 * (623.0 + 600.0 + 13.875 + 600.0))


def test_a_layer_that_costs_no_memory_does_not_keep_what_it_rests_on() -> None:
    """At this price the weights break even after 10 s and the zygote after 75 s."""
    outcome = run([ladder("f")], [Request(0.0, "f", 10.0)], BreakEven(5000.0))

    assert outcome.byte_seconds == pytest.approx(
        1360 * 13.875  # the start and the request
        + 100 * 6.25  # serving: 0.125 s for 100 B
        + 1000 * 10.0  # weights: 2 s for 1000 B
        + 60 * (500.0 / 60 * 5)  # skeleton: 0.5 s for 60 B
        + 200 * 75.0  # zygote: 3 s for 200 B
    )


def test_two_functions_on_one_model_hold_its_weights_once() -> None:
    both = [ladder("f", "base"), ladder("g", "base")]

    outcome = run(both, [Request(0.0, "f", 1.0), Request(50.0, "g", 1.0)], LeastRecentlyUsed())

    assert outcome.starts == {Rung.ABSENT: 1, Rung.HOST: 1}
    assert outcome.waits == [3.875, 0.875]
    assert outcome.peak_bytes == 200 + 1000 + 2 * 160


def test_under_pressure_the_least_recently_used_goes_and_no_more_than_needed() -> None:
    three = [whole(ladder(name)) for name in "fgh"]
    requests = [Request(100.0 * at, name, 1.0) for at, name in enumerate("fgfhfg")]

    outcome = run(three, requests, LeastRecentlyUsed(), capacity=2 * 1360)

    # h takes the place of g; f stays.
    assert outcome.waits == [3.875, 3.875, 0.0, 3.875, 0.0, 3.875]
    assert outcome.evictions == 2


def test_greedy_dual_gives_up_what_is_cheap_to_make_for_its_size() -> None:
    cheap, dear = ladder("cheap", seconds=0.1), ladder("dear", seconds=30.0)
    third = ladder("third", weight_bytes=900)
    names = ["cheap", "dear", "cheap", "third", "dear"]
    requests = [Request(100.0 * at, name, 1.0) for at, name in enumerate(names)]

    for policy in (GreedyDual(), Ladders()):
        outcome = run([cheap, dear, third], requests, policy, capacity=2600)
        assert outcome.waits[-1] == 0.0


def test_what_is_in_use_stays_and_the_start_waits() -> None:
    both = [whole(ladder("f")), whole(ladder("g"))]
    requests = [Request(0.0, "f", 10.0), Request(1.0, "g", 10.0)]

    outcome = run(both, requests, LeastRecentlyUsed(), capacity=1360)

    assert outcome.queued == 1
    assert outcome.waits == [3.875, 12.875 + 3.875]


def test_a_function_that_never_fits_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected room for f"):
        run([ladder("f")], [], LeastRecentlyUsed(), capacity=1359)


def test_regular_calls_find_their_weights_in_memory_although_another_function_took_it() -> None:
    """Two functions are called by turns, every hour; there is room for one of them."""
    both = [ladder("f"), ladder("g")]
    requests = every(3600.0, "f", 0.0, 23) + every(3600.0, "g", 1200.0, 22)
    requests.sort(key=lambda request: request.at)

    ours = run(both, requests, Ladders(), capacity=1600)
    theirs = run(both, requests, LeastRecentlyUsed(), capacity=1600)

    assert theirs.cold_starts() == len(requests)
    # The histogram says something from the tenth idle time on.
    assert ours.cold_starts() <= 2 * 11
    assert ours.prewarms >= 20


@st.composite
def workloads(draw: st.DrawFn) -> tuple[list[Ladder], list[Request]]:
    count = draw(st.integers(1, 6))
    ladders = [
        ladder(
            f"f{number}",
            f"model{draw(st.integers(0, 3))}",
            # Functions of one model have the same weights.
            weight_bytes=1000,
            seconds=2.0,
        )
        for number in range(count)
    ]
    gaps = draw(st.lists(st.floats(0.0, 3000.0), max_size=60))
    requests, now = [], 0.0
    for gap in gaps:
        now += gap
        function = f"f{draw(st.integers(0, count - 1))}"
        requests.append(Request(now, function, draw(st.floats(0.1, 100.0))))
    return ladders, [request for request in requests if request.at < DAY]


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=60, deadline=None)
@given(workload=workloads(), capacity=st.integers(1360, 8000), containers=st.booleans())
def test_no_policy_holds_more_than_the_memory_or_decides_differently_the_second_time(
    name: str, workload: tuple[list[Ladder], list[Request]], capacity: int, containers: bool
) -> None:
    ladders, requests = workload
    if containers:
        ladders = [whole(one) for one in ladders]

    outcome = run(ladders, requests, POLICIES[name](), capacity)

    assert outcome.peak_bytes <= capacity
    assert outcome.byte_seconds <= capacity * DAY * (1 + 1e-9)
    assert len(outcome.waits) == len(requests)
    assert all(wait >= 0.0 for wait in outcome.waits)
    assert sum(outcome.starts.values()) <= len(requests)
    assert run(ladders, requests, POLICIES[name](), capacity) == outcome


@pytest.mark.parametrize("policy", [LeastRecentlyUsed, Ladders])
@settings(max_examples=60, deadline=None)
@given(workload=workloads())
def test_sharing_never_costs_more_than_not_sharing(
    policy: Callable[[], Policy], workload: tuple[list[Ladder], list[Request]]
) -> None:
    ladders, requests = workload

    shared = run(ladders, requests, policy())
    apart = run([unshared(one) for one in ladders], requests, policy())

    assert all(a <= b + 1e-6 for a, b in zip(shared.waits, apart.waits, strict=True))
    assert shared.made_bytes <= apart.made_bytes
    assert shared.peak_bytes <= apart.peak_bytes
    assert shared.byte_seconds <= apart.byte_seconds * (1 + 1e-9)
