from __future__ import annotations

from collections.abc import Mapping

import pytest

from harness.plans import GB, MODEL, NOW, OTHER, assignment, function, instance, node
from stoker.placement.fleet import Fleet
from stoker.placement.prefetch import (
    NODES_AT_ONCE,
    ORDER_MAXIMUM,
    Order,
    Prefetching,
    call_rate,
    prefetches,
    replicas,
)
from stoker.placement.records import CheckpointRef, Record, ResidentRecord
from stoker.placement.scale import Demand

NEVER = Demand()
# Called ten times in the last hundred seconds, the last time just now.
HOT = Demand(calls=10, calls_since=NOW - 100.0, last_needed=(NOW - 1.0,))
FORMER = Demand(calls=2, calls_since=NOW - 80_000.0, last_needed=(NOW - 70_000.0,))


def on(node_id: str, ref: CheckpointRef, dram_bytes: int = 0, ssd_bytes: int = GB) -> Record:
    return ResidentRecord(node_id, ref.digest, dram_bytes, ssd_bytes)


def model(letter: str, size: int = GB) -> CheckpointRef:
    return CheckpointRef(f"s3://b/{letter}", letter * 64, size, packed=True)


def orders(
    *records: Record,
    demands: Mapping[str, Demand] | None = None,
    before: Mapping[str, Order] | None = None,
) -> dict[str, Order]:
    fleet = Fleet(records, NOW)
    known = demands or {}
    return prefetches(
        fleet,
        lambda key: known.get(key, NEVER),
        before or {},
        tuple(fleet.nodes),
        tuple(fleet.functions),
        NOW,
    )


def test_what_is_on_the_disk_of_an_idle_node_comes_into_its_memory() -> None:
    assert orders(function("f", MODEL), node(), on("n", MODEL)) == {"n": (MODEL,)}


def test_what_is_in_memory_is_not_read_again() -> None:
    assert orders(function("f", MODEL), node(), on("n", MODEL, GB)) == {"n": ()}


def test_what_no_function_has_any_more_stays_on_the_disk() -> None:
    assert orders(function("code"), node(), on("n", MODEL)) == {"n": ()}


def test_what_is_called_most_is_read_first() -> None:
    found = orders(
        *(function("f", MODEL), function("g", OTHER), node(), on("n", MODEL), on("n", OTHER)),
        demands={"g.ns": HOT},
    )
    assert found == {"n": (OTHER, MODEL)}


def test_who_waits_for_a_place_counts_more_than_who_called_before() -> None:
    assert call_rate(Demand(queued=1), NOW) > call_rate(HOT, NOW)


def test_nothing_goes_for_what_is_only_read_ahead() -> None:
    """Memory for two: one is taken, so one comes, though the taken one is hardly ever called."""
    third = model("c")
    found = orders(
        *(function("f", MODEL), function("g", OTHER), function("h", third)),
        *(node(dram_bytes=int(2.2 * GB)), on("n", third, GB), on("n", MODEL), on("n", OTHER)),
        demands={"f.ns": HOT, "g.ns": HOT, "h.ns": FORMER},
    )
    assert found == {"n": (MODEL,)}


def test_what_is_on_its_way_for_an_instance_keeps_its_room() -> None:
    owner, loading = function("f", MODEL), function("g", OTHER)
    records = [owner, loading, node(dram_bytes=int(1.5 * GB)), on("n", MODEL)]
    made = assignment("1-0", loading)
    assert orders(*records, made) == {"n": ()}
    serving = instance(made)
    held = on("n", OTHER, GB)
    assert orders(*records, made, serving, held) == {"n": ()}


def test_several_nodes_read_different_things_first() -> None:
    """Each has all on its disk: the sooner all is in memory somewhere, the better."""
    models = [model(letter) for letter in "abcd"]
    records: list[Record] = [function(f"f{m.uri[-1]}", m) for m in models]
    records += [node(node_id, dram_bytes=9 * GB) for node_id in ("x", "y")]
    records += [on(node_id, m) for m in models for node_id in ("x", "y")]
    found = orders(*records)
    assert found["x"][0] != found["y"][0]
    assert {ref.digest for order in found.values() for ref in order[:2]} == {
        m.digest for m in models
    }


def test_a_second_copy_comes_after_the_first_of_what_is_called_as_often() -> None:
    found = orders(
        *(function("f", MODEL), function("g", OTHER), node("x"), node("y")),
        *(on("x", MODEL, GB), on("y", MODEL), on("y", OTHER)),
    )
    assert found == {"x": (), "y": (OTHER, MODEL)}


def test_what_nobody_has_is_fetched_by_the_node_with_most_room() -> None:
    small, large = node("x", dram_bytes=2 * GB), node("y", dram_bytes=4 * GB)
    assert orders(function("f", MODEL), small, large) == {"x": (), "y": (MODEL,)}


def test_what_is_fetched_for_one_node_is_not_fetched_for_another() -> None:
    records = (function("f", MODEL), node("x"), node("y", dram_bytes=8 * GB))
    assert orders(*records, before={"x": (MODEL,)}) == {"x": (MODEL,), "y": ()}


def test_what_is_called_often_is_fetched_by_more_nodes() -> None:
    records = (function("f", MODEL), node("x"), node("y"), on("x", MODEL, GB))
    assert orders(*records) == {"x": (), "y": ()}
    assert orders(*records, demands={"f.ns": HOT}) == {"x": (), "y": (MODEL,)}


@pytest.mark.parametrize(
    ("rate", "count"),
    [(0.0, 1), (1 / 3600, 1), (1 / 600, 1), (1 / 300, 2), (1 / 60, 4), (1.0, 10)],
)
def test_a_replica_pays_if_ten_minutes_bring_a_call_to_it(rate: float, count: int) -> None:
    assert replicas(rate) == count


def test_what_has_begun_goes_on_also_if_something_else_is_called_more_by_now() -> None:
    records = (function("f", MODEL), function("g", OTHER), node(), on("n", OTHER))
    half = on("n", MODEL, GB // 2)
    found = orders(*records, half, demands={"g.ns": HOT}, before={"n": (MODEL, OTHER)})
    assert found == {"n": (MODEL, OTHER)}


def test_an_order_is_short() -> None:
    letters = "abcdef0123"
    records: list[Record] = [function(f"f{x}", model(x, GB // 10)) for x in letters]
    records += [on("n", model(x, GB // 10), 0, GB // 10) for x in letters]
    assert len(orders(node(), *records)["n"]) == ORDER_MAXIMUM


def test_only_changed_orders_are_told_and_every_node_has_its_turn() -> None:
    count = NODES_AT_ONCE + 3
    names = [f"n{number:03}" for number in range(count)]
    fleet = Fleet([function("f", MODEL), *map(node, names), *(on(n, MODEL) for n in names)], NOW)
    prefetching, told = Prefetching(), {}
    for _ in range(2):
        told.update(prefetching.renew(fleet, lambda _: NEVER, told, NOW))
    assert told == dict.fromkeys(names, (MODEL,))
    assert prefetching.renew(fleet, lambda _: NEVER, told, NOW) == {}
    for name in names:
        fleet.put(on(name, MODEL, GB), NOW)
    for _ in range(2):
        told.update(prefetching.renew(fleet, lambda _: NEVER, told, NOW))
    assert told == dict.fromkeys(names, ())
