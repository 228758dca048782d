"""All places of a pipeline or none: against trying every way, and as one entry of the store."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.fleets import FUNCTIONS, Case, cases, devices_of
from harness.plans import GB, NOW, assignment, function, node
from stoker.placement.choice import NEAR_SECONDS, NEAR_SHARE
from stoker.placement.errors import BadRequest, Fenced, VersionConflict
from stoker.placement.estimate import pool_bytes
from stoker.placement.fleet import Fleet
from stoker.placement.forecast import forecast
from stoker.placement.gang import EVENNESS, Gang, GangChoice, assignments_of, choose_gang
from stoker.placement.records import (
    CheckpointRef,
    DeviceNeed,
    FunctionRecord,
    NodeRecord,
    ResidentRecord,
    decode,
    encode,
)
from stoker.placement.store import ABSENT, Fence, Store

MODEL = CheckpointRef("s3://b/m", "a" * 64, 36 * GB, packed=True)
PART = 10 * GB  # of four stages
LARGE: dict[str, Any] = {"dram_bytes": 64 * GB, "sockets": 8}


def choose(fleet: Fleet, f: FunctionRecord, stages: int) -> GangChoice:
    return choose_gang(fleet, f, stages, NOW, gang_id="7-0", epoch=7)


def nodes_of(made: GangChoice) -> list[str]:
    assert made.gang is not None
    return [stage.node_id for stage in made.gang.stages]


def takes(case: Case, owner: FunctionRecord, on: NodeRecord, stages: int) -> int:
    """How many stages the node can take, from the records alone."""
    here = [made for made, _ in case.running if made.node_id == on.node_id]
    owners = {f.key: f for f in FUNCTIONS}
    need = devices_of(_part(owner, stages), on)
    if need is None:
        return 0
    used = {made.address for made in here}
    found = [on.instances_maximum - len(here), sum(a not in used for a in on.spare_addresses)]
    if need:
        found.append((on.device_count - sum(len(a.devices) for a in here)) // need)
    ref = _part(owner, stages).checkpoint
    if ref is not None:
        pinned = {r.digest: pool_bytes(r) for a in here if (r := owners[a.function].checkpoint)}
        if ref.digest not in pinned:
            found.append((on.dram_bytes - sum(pinned.values())) // pool_bytes(ref))
        elif sum(pinned.values()) > on.dram_bytes:
            return 0
    return max(0, min(*found, stages))


def _part(owner: FunctionRecord, stages: int) -> FunctionRecord:
    if owner.checkpoint is None:
        return owner
    share = 1 / (stages * EVENNESS)
    part_bytes = math.ceil(owner.checkpoint.weight_bytes * share)
    ref = CheckpointRef("s3://b/p", owner.checkpoint.digest, part_bytes, packed=True)
    return FunctionRecord("p", "ns", "img", checkpoint=ref, devices=owner.devices)


@settings(max_examples=200, deadline=None)
@given(cases(), st.sampled_from(FUNCTIONS), st.integers(2, 5))
def test_the_last_stage_is_ready_as_soon_as_trying_every_way_finds(
    case: Case, owner: FunctionRecord, stages: int
) -> None:
    fleet = case.fleet()
    made = choose(fleet, owner, stages)
    most = {on.node_id: takes(case, owner, on, stages) for on in case.nodes}
    assert made.places == sum(most.values())

    def ready(node_id: str, count: int) -> float:
        share = min(1.0, count / (stages * EVENNESS))
        row = fleet.rows.ids.index(node_id)
        return float(forecast(fleet, owner, NOW, share=share).seconds[row])

    ways = [
        dict(zip(most, counts, strict=True))
        for counts in itertools.product(*(range(limit + 1) for limit in most.values()))
        if sum(counts) == stages
    ]
    if not ways:
        assert (made.gang, made.seconds) == (None, math.inf)
        return
    latest = [max(ready(name, n) for name, n in way.items() if n) for way in ways]
    taken = {name: nodes_of(made).count(name) for name in most}
    assert taken in ways
    assert made.seconds == latest[ways.index(taken)]
    zones = {on.zone for on in case.nodes if taken[on.node_id]}
    near = min(latest) * (1.0 + NEAR_SHARE) + NEAR_SECONDS
    assert made.seconds <= (near if len(zones) == 1 else min(latest))


@settings(max_examples=100, deadline=None)
@given(cases(), st.sampled_from(FUNCTIONS), st.integers(2, 4))
def test_stages_take_places_that_nobody_has_and_as_one_instance_each_would(
    case: Case, owner: FunctionRecord, stages: int
) -> None:
    fleet = case.fleet()
    made = choose(fleet, owner, stages)
    if made.gang is None:
        return
    before = {a.address for a, _ in case.running}
    orders = assignments_of(made.gang)
    assert len({order.address for order in orders} - before) == stages
    for order in orders:
        row = fleet.rows.number(order.node_id)
        assert order.address in fleet.nodes[order.node_id].spare_addresses
        assert set(order.devices) <= set(fleet.free_devices(order.node_id))
        fleet.put(order, NOW)
        assert row is not None
        assert fleet.rows.devices_free[row] >= 0
        assert fleet.rows.slots_used[row] <= fleet.rows.slots[row]
    for on in case.nodes:
        given = [
            device for order in orders if order.node_id == on.node_id for device in order.devices
        ]
        assert len(given) == len(set(given))


class TestZones:
    """Four stages of a GPU each; every node has two, and `b` is in another zone than `a`."""

    f = function("f", MODEL, devices=(DeviceNeed("h100", 1),))

    def chosen(self, slower: float) -> set[str]:
        common: dict[str, Any] = {"device_kind": "h100", "device_count": 2, **LARGE}
        speed = {"remote_bandwidth": 2.0 * GB}
        nodes = [
            node("a", zone="x", **common, **speed),
            node("b", zone="y", **common, **speed),
            node("c", zone="x", **common, remote_bandwidth=2.0 * GB / slower),
        ]
        return set(nodes_of(choose(Fleet([self.f, *nodes], NOW), self.f, 4)))

    def test_one_zone_has_them_all_where_that_is_hardly_later(self) -> None:
        assert self.chosen(slower=1.05) == {"a", "c"}

    def test_two_zones_have_them_where_one_would_be_much_later(self) -> None:
        assert self.chosen(slower=2.5) == {"a", "b"}


def test_stages_spread_over_nodes_whose_links_they_would_share() -> None:
    f = function("f", MODEL)
    fleet = Fleet([f, *(node(name, **LARGE) for name in "abcd")], NOW)
    made = choose(fleet, f, 4)
    assert nodes_of(made) == ["a", "b", "c", "d"]
    # 10 GB each, at 0.1 GB/s.
    assert made.seconds == pytest.approx(PART / (0.1 * GB), rel=0.01)


def test_stages_stay_on_the_node_that_holds_the_weights() -> None:
    f = function("f", MODEL)
    held = ResidentRecord("b", MODEL.digest, MODEL.weight_bytes, MODEL.weight_bytes)
    nodes = [node("a", peer_bandwidth=0.1 * GB, **LARGE), node("b", **LARGE)]
    assert nodes_of(choose(Fleet([f, *nodes, held], NOW), f, 3)) == ["b"] * 3


def test_without_a_place_for_every_stage_there_is_none_for_any() -> None:
    f = function("f", MODEL, devices=(DeviceNeed("h100", 2),))
    common: dict[str, Any] = {"device_kind": "h100", "dram_bytes": 64 * GB}
    nodes = [
        node("a", device_count=4, **common),
        node("b", device_count=1, **common),
    ]
    fleet = Fleet([f, *nodes], NOW)
    made = choose(fleet, f, 3)
    assert (made.gang, made.seconds, made.places) == (None, math.inf, 2)
    assert dict(made.survey.refusals()) == {"b": "1 of its 1 devices are free, 2 are needed"}
    assert nodes_of(choose(fleet, f, 2)) == ["a", "a"]


def test_what_a_gang_was_given_nobody_else_gets() -> None:
    f = function("f", MODEL, devices=(DeviceNeed("h100", 1),))
    on = node("a", device_kind="h100", device_count=4, **LARGE)
    fleet = Fleet([f, on, assignment("1-0", f, "a", devices=(1,))], NOW)
    first = choose(fleet, f, 2)
    assert first.gang is not None
    assert [stage.devices for stage in first.gang.stages] == [(0,), (2,)]
    for order in assignments_of(first.gang):
        fleet.put(order, NOW)
    assert choose(fleet, f, 2).places == 1


@pytest.mark.parametrize("stages", [0, 1, 65])
def test_a_number_of_stages_that_no_pipeline_has_is_refused(stages: int) -> None:
    with pytest.raises(BadRequest, match=f"found {stages}"):
        choose(Fleet([FUNCTIONS[0]], NOW), FUNCTIONS[0], stages)


def test_a_gang_is_in_the_store_with_all_its_stages_or_not_at_all(store: Store) -> None:
    f = function("f", MODEL)
    made = choose(Fleet([f, *(node(n, **LARGE) for n in "ab")], NOW), f, 2)
    assert made.gang is not None
    gang, epoch = made.gang, store.put("/placement/epoch", b"")
    fence = Fence("/placement/epoch", epoch)
    store.put("/placement/epoch", b"")

    with pytest.raises(Fenced):
        store.put(gang.path, encode(gang), version=ABSENT, fence=fence)
    assert store.list("/gangs") == ()

    fence = Fence("/placement/epoch", epoch + 1)
    store.put(gang.path, encode(gang), version=ABSENT, fence=fence)
    (entry,) = store.list("/gangs")
    assert (entry.path, decode(Gang, entry.value)) == ("/gangs/7-0", gang)
    with pytest.raises(VersionConflict):
        store.put(gang.path, encode(gang), version=ABSENT, fence=fence)
