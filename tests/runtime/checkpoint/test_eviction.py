from __future__ import annotations

from stoker.runtime.checkpoint.eviction import GreedyDual


def test_the_cheapest_to_bring_back_goes_first() -> None:
    order = GreedyDual()
    order.touch("far", reload_seconds=10.0, byte_count=100)
    order.touch("near", reload_seconds=1.0, byte_count=100)

    assert order.victim(["far", "near"]) == "near"


def test_the_larger_of_two_that_cost_the_same_goes_first() -> None:
    order = GreedyDual()
    order.touch("large", reload_seconds=1.0, byte_count=1000)
    order.touch("small", reload_seconds=1.0, byte_count=10)

    assert order.victim(["large", "small"]) == "large"


def test_what_is_used_often_stays() -> None:
    order = GreedyDual()
    for key in ("often", "often", "often", "once"):
        order.touch(key, reload_seconds=1.0, byte_count=100)

    assert order.victim(["often", "once"]) == "once"


def test_equals_go_in_the_order_of_their_last_use() -> None:
    order = GreedyDual()
    order.touch("a", 1.0, 100)
    order.touch("b", 1.0, 100)

    assert order.victim(["b", "a"]) == "a"


def test_what_was_used_often_long_ago_goes_at_last() -> None:
    order = GreedyDual()
    for _ in range(5):
        order.touch("old", 1.0, 1)
    for number in range(6):
        order.touch(f"new-{number}", 1.0, 1)
        assert order.victim([f"new-{number}"]) == f"new-{number}"
        order.forget(f"new-{number}")
        order.touch(f"next-{number}", 1.0, 1)

    assert order.victim(["old", "next-5"]) == "old"


def test_there_is_no_victim_among_none() -> None:
    assert GreedyDual().victim([]) is None
