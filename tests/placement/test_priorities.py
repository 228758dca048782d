"""Whose place a waiting request of some priority takes: of idle instances, and of those in use."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import fleets
from harness.fleets import FUNCTIONS, Case, cases
from harness.plans import (
    GB,
    MODEL,
    NOW,
    QUEUED,
    Running,
    assignment,
    decide,
    function,
    node,
    snapshot,
    stopped,
)
from stoker.placement.choice import Ask, _Choice
from stoker.placement.fleet import Placed
from stoker.placement.placing import PLACINGS, Abilities, Placing
from stoker.placement.plan import Plan
from stoker.placement.records import DeviceNeed, FunctionRecord, NodeRecord, ResidentRecord
from stoker.placement.scale import Demand

# Called every second until just now; called once; and being called.
LIVELY = Demand(last_needed=(NOW - 1.0,), calls=64, calls_since=NOW - 64.0)
QUIET = Demand(last_needed=(NOW - 40.0,), calls=1, calls_since=NOW - 40.0)
BUSY = Demand(in_flight=1, last_needed=(NOW,))
Others = list[tuple[FunctionRecord, Demand]]


def plan_for(
    asker: FunctionRecord,
    others: Others,
    nodes: list[NodeRecord] | None = None,
    *,
    own: Running | None = None,
    residents: list[ResidentRecord] | None = None,
) -> Plan:
    """`asker` waits; each of the others has an instance named after it, on the nodes in turn."""
    on = nodes or [node(instances_maximum=len(others), sockets=8)]
    running: Running = list(own or [])
    for number, (other, _) in enumerate(others):
        place = on[number % len(on)].node_id
        running.append((assignment(other.name, other, place), "serving"))
    demand = {other.key: asked for other, asked in others} | {asker.key: QUEUED}
    functions = [asker, *(other for other, _ in others)]
    return decide(snapshot(functions, on, running, residents), demand)


@pytest.mark.parametrize(
    ("priority", "goes"),
    # Who asks with the priority of the lively one would take the place of the quiet one.
    [(7, "lively"), (3, "lively"), (2, "quiet"), (0, "quiet")],
)
def test_an_idle_instance_of_a_lower_priority_goes_first_whatever_it_is_worth(
    priority: int, goes: str
) -> None:
    lively, quiet = function("lively", priority=2), function("quiet", priority=3)
    others = [(lively, LIVELY), (quiet, QUIET)]
    if priority == 2:
        others[1] = (function("quiet", priority=2), QUIET)

    assert list(stopped(plan_for(function(priority=priority), others))) == [goes]


def test_an_idle_instance_of_a_higher_priority_gives_way_when_no_other_can() -> None:
    made = plan_for(function(), [(function("high", priority=9), QUIET)])

    assert list(stopped(made)) == ["high"]
    assert len(made.starts) == 1


def test_nodes_are_told_apart_by_the_priorities_of_what_is_idle_there() -> None:
    f = function(priority=5)
    nodes = [node(name, instances_maximum=1) for name in ("a", "b", "c")]
    others = [
        (function("equal", priority=5), LIVELY),
        (function("lower", priority=4), LIVELY),
        (function("higher", priority=6), LIVELY),
    ]

    assert [start.node_id for start in plan_for(f, others, nodes).starts] == ["b"]


class TestInUse:
    low = function("low", priority=1)

    def test_whom_nobody_serves_takes_the_place_of_a_lower_priority_in_use(self) -> None:
        made = plan_for(function(priority=2), [(self.low, BUSY)])

        assert stopped(made) == {"low": "its place was needed for f.ns, whose priority is higher"}
        assert [decision.chosen.kind for decision, _ in made.decisions if decision.chosen] == [
            "drain"
        ]

    @pytest.mark.parametrize("priority", [0, 1])
    def test_an_equal_or_lower_priority_is_told_that_there_is_no_room(self, priority: int) -> None:
        made = plan_for(function(priority=priority), [(self.low, BUSY)])

        assert (made.starts, made.stops) == ((), ())
        assert [shortage.function for shortage in made.shortages] == ["f.ns"]

    def test_who_is_served_by_one_takes_no_more_of_them(self) -> None:
        f = function(priority=2)
        on = [node(instances_maximum=2, sockets=8)]
        own: Running = [(assignment("own", f, "n"), "serving")]

        made = plan_for(f, [(self.low, BUSY)], on, own=own)
        assert (made.starts, made.stops) == ((), ())

    def test_the_lowest_priority_goes(self) -> None:
        others = [(function(f"p{n}", priority=n), BUSY) for n in (3, 1, 2)]

        assert list(stopped(plan_for(function(priority=9), others))) == ["p1"]

    @pytest.mark.parametrize(("gigabytes", "kept"), [(2, True), (4, False)])
    def test_a_start_elsewhere_is_preferred_unless_it_takes_longer_than_the_drain(
        self, gigabytes: int, kept: bool
    ) -> None:
        """At 125 MB/s; its weights are in memory where `low` is in use."""
        ref = dataclasses.replace(MODEL, weight_bytes=gigabytes * GB)
        f = function("f", ref, priority=2)
        pool = {"dram_bytes": 64 * GB}
        nodes = [node("near", instances_maximum=1, **pool), node("free", **pool)]
        near = [ResidentRecord("near", ref.digest, ref.weight_bytes, 0)]

        made = plan_for(f, [(self.low, BUSY)], nodes, residents=near)

        assert bool(made.stops) != kept
        assert [start.node_id for start in made.starts] == ["free" if kept else "near"]

    def test_devices_are_freed_as_far_as_they_are_needed(self) -> None:
        gpu: dict[str, Any] = {
            "device_kind": "h100",
            "device_count": 4,
            "instances_maximum": 8,
            "sockets": 8,
        }
        f = function("f", priority=2, devices=(DeviceNeed("h100", 2),))
        on = node("n", **gpu)
        running: Running = [
            (assignment("a", self.low, devices=(0,)), "serving"),
            (assignment("b", self.low, devices=(1,)), "serving"),
            (assignment("c", self.low, devices=(2,)), "serving"),
        ]
        demand = {"low.ns": Demand(in_flight=3, last_needed=(NOW,) * 3), "f.ns": QUEUED}

        made = decide(snapshot([f, self.low], [on], running), demand)

        assert len(made.stops) == 1
        ((start,),) = (made.starts,)
        left = {d for a, _ in running for d in a.devices if a.instance_id not in stopped(made)}
        assert len(start.devices) == 2
        assert left.isdisjoint(start.devices)


@settings(max_examples=200, deadline=None)
@given(
    cases(),
    st.sampled_from(FUNCTIONS),
    st.sampled_from(list(PLACINGS.values())),
    st.sets(st.sampled_from([f.key for f in FUNCTIONS])),
    st.booleans(),
)
def test_no_way_costs_less_than_was_reckoned_when_some_instances_must_stay(
    case: Case, owner: FunctionRecord, placing: Placing, held: Collection[str], urgent: bool
) -> None:
    fleet = case.fleet()
    for key in held:
        fleet.note_spare(key, None)

    def given_of(placed: Placed) -> tuple[float, tuple[float, ...]] | None:
        return None if placed.assignment.function in held else fleets.given(placed)

    every = Abilities(migrate=True, preempt=True, drain=True)
    choice = _Choice(fleet, Ask(owner, urgent=urgent), NOW, placing, every, given_of)
    least = choice._ways.least_costs(choice._forecast)
    for row in range(fleet.rows.size):
        room = None if choice._survey.free[row] else choice._room(row)
        if room is not None and room.victims:
            cost = float(choice._forecast.after(room.seconds, row)) + room.loss_seconds
            assert least[row] <= cost + 1e-9
