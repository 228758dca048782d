import dataclasses
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.plans import (
    GB,
    IDLE,
    MODEL,
    NOW,
    OLDER,
    OTHER,
    QUEUED,
    Running,
    assignment,
    decide,
    function,
    instance,
    node,
    snapshot,
    stopped,
)
from stoker.placement.estimate import PREFILL_SECONDS
from stoker.placement.fleet import Fleet
from stoker.placement.forecast import forecast
from stoker.placement.link_queues import Link
from stoker.placement.plan import ANNOUNCE_SECONDS, Plan, plan
from stoker.placement.records import Assignment, InstanceState, NodeRecord, ResidentRecord
from stoker.placement.scale import Demand
from stoker.placement.view import Snapshot


def test_a_queued_request_starts_an_instance_at_a_spare_address() -> None:
    made = decide(snapshot([function()], [node()]), {"f.ns": QUEUED}, first_number=3)
    assert made == Plan(starts=(Assignment("7-3", "f.ns", 1, "n", "n:0", 7, NOW),))


def test_without_demand_nothing_starts_but_the_minimum() -> None:
    made = decide(snapshot([function(), function("m", minimum=2)], [node()]))
    assert Counter(start.function for start in made.starts) == {"m.ns": 2}


@pytest.mark.parametrize("state", [None, "starting", "serving"])
def test_what_exists_or_is_starting_is_not_started_again(state: InstanceState | None) -> None:
    f = function()
    made = decide(snapshot([f], [node()], [(assignment("1-0", f), state)]), {"f.ns": QUEUED})
    assert made == Plan()


@pytest.mark.parametrize(
    ("residents", "expected"),
    [
        ([], "a"),
        ([ResidentRecord("b", MODEL.digest, 0, GB)], "b"),
        ([ResidentRecord("b", MODEL.digest, 0, GB), ResidentRecord("c", MODEL.digest, GB, 0)], "c"),
    ],
)
def test_dram_comes_before_ssd_before_remote(
    residents: list[ResidentRecord], expected: str
) -> None:
    nodes = [node("c"), node("b"), node("a")]
    seen = snapshot([function(checkpoint=MODEL)], nodes, residents=residents)
    assert decide(seen, {"f.ns": QUEUED}).starts[0].node_id == expected


def test_a_load_queue_on_the_better_node_sends_the_start_elsewhere() -> None:
    busy = function("busy", OTHER)
    residents = [ResidentRecord(n, ref.digest, 0, GB) for n in "ab" for ref in (MODEL, OTHER)]
    seen = snapshot(
        [function(checkpoint=MODEL), busy],
        [node("a"), node("b", ssd_bandwidth=0.8 * GB)],
        [(assignment("1-0", busy, "a"), "starting")],
        residents,
    )
    made = decide(seen, {"f.ns": QUEUED, "busy.ns": QUEUED})
    assert [start.node_id for start in made.starts] == ["b"]


def test_while_the_queue_of_a_busy_instance_is_shorter_than_a_start_nothing_starts() -> None:
    """A start takes 0.5 s; one instance takes one request at a time."""
    f = function()
    seen = snapshot([f], [node(init_seconds=0.5)], [(assignment("1-0", f), "serving")])
    for queued, request_seconds, expected in ((3, 0.1, 0), (3, 1.0, 3), (9, 0.1, 3), (3, 0.0, 3)):
        demand = Demand(1, queued, (NOW,), request_seconds=request_seconds)
        assert len(decide(seen, {"f.ns": demand}).starts) == expected
    starting = snapshot([f], [node()], [(assignment("1-0", f), "starting")])
    assert decide(starting, {"f.ns": Demand(0, 2, (NOW,), request_seconds=0.1)}).starts


def test_a_start_is_predicted_with_the_prefill_that_the_gateways_saw() -> None:
    seen = snapshot([function(checkpoint=MODEL)], [node()])
    for said, expected in ((0.0, PREFILL_SECONDS), (2.5, 2.5)):
        demand = dataclasses.replace(QUEUED, prefill_seconds=said)
        ((decision, _),) = decide(seen, {"f.ns": demand}).decisions
        assert decision.chosen is not None
        assert decision.chosen.stages.prefill == expected


def test_a_load_is_promised_from_the_arrival_of_the_first_that_waits() -> None:
    f = function(checkpoint=MODEL, slo_ttft_seconds=30.0)
    fleet = Fleet(snapshot([f], [node()]).records(), NOW)
    demand = dataclasses.replace(QUEUED, waiting_since=NOW - 5.0)
    plan(fleet, {"f.ns": demand}, NOW, epoch=7)
    row = fleet.rows.number("n")
    assert row is not None
    promised = fleet.rows.queues.deadline_of(Link.NET, row, MODEL.digest)
    assert promised == NOW - 5.0 + 30.0 - PREFILL_SECONDS


def test_equal_nodes_are_filled_evenly() -> None:
    seen = snapshot([function()], [node("a"), node("b")])
    made = decide(seen, {"f.ns": Demand(queued=4)})
    assert [start.node_id for start in made.starts] == ["a", "b", "a", "b"]


def test_the_node_that_failed_last_comes_last() -> None:
    seen = snapshot([function()], [node("a"), node("b")])
    demand = dataclasses.replace(QUEUED, avoid=frozenset("a"))
    assert decide(seen, {"f.ns": demand}).starts[0].node_id == "b"


def test_nothing_starts_before_the_pause_after_a_failure_is_over() -> None:
    demand = dataclasses.replace(QUEUED, not_before=NOW + 0.1)
    assert decide(snapshot([function()], [node()]), {"f.ns": demand}) == Plan()


def test_an_address_that_is_assigned_in_use_or_resting_is_not_given_out() -> None:
    f, g = function(), function("g")
    seen = snapshot([f, g], [node(sockets=4)], [(assignment("1-0", g, address="n:0"), None)])
    left = instance(assignment("1-1", g, address="n:1"), "stopping")
    seen = dataclasses.replace(seen, instances={"1-1": left}, instance_index=None)
    made = decide(seen, {"f.ns": QUEUED, "g.ns": QUEUED}, resting=frozenset({"n:2"}))
    assert [start.address for start in made.starts] == ["n:3"]


@pytest.mark.parametrize(
    ("nodes", "refusal"),
    [
        ([node(sockets=0)], "no listening socket is ready"),
        ([node(instances_maximum=0)], "0 of 0 instances are in use"),
        ([node(dram_bytes=GB // 2)], "a pool of 500000000 B"),
    ],
)
def test_a_shortage_says_what_each_node_lacks(nodes: list[NodeRecord], refusal: str) -> None:
    made = decide(snapshot([function(checkpoint=MODEL)], nodes), {"f.ns": QUEUED})
    assert made.starts == ()
    ((node_id, why),) = made.shortages[0].refusals()
    assert (node_id, made.shortages[0].function) == ("n", "f.ns")
    assert refusal in why


def test_a_shortage_that_waiting_cannot_end_says_so() -> None:
    small = snapshot([function(checkpoint=MODEL)], [node(dram_bytes=1)])
    assert not decide(small, {"f.ns": QUEUED}).shortages[0].may_pass
    assert decide(snapshot([function()], []), {"f.ns": QUEUED}).shortages[0].may_pass


def test_two_instances_of_one_model_need_its_bytes_once() -> None:
    seen = snapshot([function(checkpoint=MODEL)], [node(dram_bytes=int(1.1 * GB))])
    assert len(decide(seen, {"f.ns": Demand(queued=2)}).starts) == 2


def test_an_idle_instance_makes_room_for_a_waiting_request() -> None:
    f, g, h = function(), function("g"), function("h")
    running: Running = [
        (assignment("1-0", g), "serving"),
        (assignment("1-1", h), "serving"),
    ]
    seen = snapshot([f, g, h], [node(instances_maximum=2)], running)
    made = decide(seen, {"f.ns": QUEUED, "g.ns": IDLE, "h.ns": OLDER})
    assert [start.function for start in made.starts] == ["f.ns"]
    assert stopped(made) == {"1-1": "its place was needed for f.ns"}


def test_weights_of_an_idle_model_make_room_and_nothing_else_goes() -> None:
    f, g, code = function(checkpoint=MODEL), function("g", OTHER), function("code")
    running: Running = [
        (assignment("1-0", code), "serving"),
        (assignment("1-1", g), "serving"),
    ]
    seen = snapshot([f, g, code], [node(dram_bytes=int(1.1 * GB))], running)
    made = decide(seen, {"f.ns": QUEUED, "g.ns": IDLE, "code.ns": OLDER})
    assert set(stopped(made)) == {"1-1"}


def test_a_busy_function_or_a_minimum_does_not_make_room() -> None:
    f, busy, warm = function(), function("busy"), function("warm", minimum=1)
    running: Running = [
        (assignment("1-0", busy), "serving"),
        (assignment("1-1", warm), "serving"),
    ]
    seen = snapshot([f, busy, warm], [node(instances_maximum=2)], running)
    made = decide(seen, {"f.ns": QUEUED, "busy.ns": Demand(in_flight=1, last_needed=(NOW,))})
    assert (made.starts, made.stops) == ((), ())
    assert made.shortages[0].refusals() == (("n", "2 of 2 instances are in use"),)


def test_of_a_busy_function_only_what_is_known_to_be_idle_and_too_much_makes_room() -> None:
    f, busy = function(), function("busy")
    running: Running = [(assignment(f"1-{n}", busy), "serving") for n in range(2)]
    seen = snapshot([f, busy], [node(instances_maximum=2)], running)

    def asked(in_flight: int, *working: str) -> Demand:
        return Demand(in_flight, last_needed=(NOW, NOW), working=frozenset(working))

    made = decide(seen, {"f.ns": QUEUED, "busy.ns": asked(1, "1-0")})
    assert stopped(made) == {"1-1": "its place was needed for f.ns"}
    assert [start.function for start in made.starts] == ["f.ns"]
    for kept in (asked(1), asked(2, "1-0", "1-1"), asked(2, "1-0")):
        made = decide(seen, {"f.ns": QUEUED, "busy.ns": kept})
        assert (made.starts, made.stops) == ((), ())


def test_what_starts_for_a_busy_function_does_not_make_room() -> None:
    f, busy = function(), function("busy")
    running: Running = [(assignment("1-0", busy), "serving"), (assignment("1-1", busy), "starting")]
    seen = snapshot([f, busy], [node(instances_maximum=2)], running)
    working = Demand(in_flight=1, last_needed=(NOW, NOW), working=frozenset({"1-0"}))
    made = decide(seen, {"f.ns": QUEUED, "busy.ns": working})
    assert (made.starts, made.stops) == ((), ())


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("deleted", "the function was deleted"),
        ("node gone", "the node is gone"),
        ("failed", "the instance is failed"),
        ("stopping", "the instance is stopping"),
        ("silent", "the node never announced it"),
    ],
)
def test_a_dead_assignment_is_removed(case: str, reason: str) -> None:
    f = function()
    made = assignment("1-0", f)
    state: Any = case if case in ("failed", "stopping") else "serving"
    if case == "silent":
        made, state = dataclasses.replace(made, created_at=NOW - ANNOUNCE_SECONDS - 1), None
    functions = [] if case == "deleted" else [f]
    nodes = [] if case == "node gone" else [node()]
    assert stopped(decide(snapshot(functions, nodes, [(made, state)]))) == {"1-0": reason}


def test_an_idle_function_is_scaled_down_and_the_oldest_serving_instance_stays() -> None:
    f = function(minimum=1)
    running: Running = [
        (assignment("1-0", f, created_at=NOW - 9), "starting"),
        (assignment("1-1", f, created_at=NOW - 8), "serving"),
        (assignment("1-2", f, created_at=NOW - 7), "serving"),
    ]
    made = decide(snapshot([f], [node()], running))
    assert stopped(made) == {"1-0": "scaled down", "1-2": "scaled down"}


class TestNewGeneration:
    old = function()
    new = dataclasses.replace(old, generation=2)
    busy = Demand(in_flight=1, last_needed=(NOW,))

    def test_an_idle_old_instance_goes_at_once_and_no_new_one_starts(self) -> None:
        seen = snapshot([self.new], [node()], [(assignment("1-0", self.old), "serving")])
        made = decide(seen, {"f.ns": IDLE})
        assert stopped(made) == {"1-0": "a newer generation was deployed"}
        assert made.starts == ()

    def test_under_demand_the_new_one_starts_first(self) -> None:
        seen = snapshot([self.new], [node()], [(assignment("1-0", self.old), "serving")])
        made = decide(seen, {"f.ns": self.busy})
        assert [start.generation for start in made.starts] == [2]
        assert made.stops == ()

    @pytest.mark.parametrize(("state", "gone"), [("starting", set()), ("serving", {"1-0"})])
    def test_the_old_one_goes_when_the_new_one_serves(
        self, state: InstanceState, gone: set[str]
    ) -> None:
        running: Running = [
            (assignment("1-0", self.old), "serving"),
            (assignment("1-1", self.new), state),
        ]
        made = decide(snapshot([self.new], [node()], running), {"f.ns": self.busy})
        assert (set(stopped(made)), made.starts) == (gone, ())

    def test_on_a_full_node_the_old_one_gives_its_place(self) -> None:
        seen = snapshot(
            [self.new], [node(instances_maximum=1)], [(assignment("1-0", self.old), "serving")]
        )
        made = decide(seen, {"f.ns": self.busy})
        assert set(stopped(made)) == {"1-0"}
        assert [start.generation for start in made.starts] == [2]


FUNCTIONS = [
    function("f", maximum=3),
    function("g", checkpoint=MODEL, maximum=2, minimum=1),
    function("h", checkpoint=OTHER, generation=2),
]


@st.composite
def clusters(draw: st.DrawFn) -> tuple[Snapshot, dict[str, Demand]]:
    nodes = [
        node(
            node_id,
            sockets=draw(st.integers(0, 4)),
            instances_maximum=draw(st.integers(0, 4)),
            dram_bytes=draw(st.sampled_from([0, int(1.1 * GB), 4 * GB])),
        )
        for node_id in draw(st.sampled_from([[], ["a"], ["a", "b"], ["a", "b", "c"]]))
    ]
    running: Running = []
    for number in range(draw(st.integers(0, 6))):
        owner = draw(st.sampled_from([*FUNCTIONS, function("deleted")]))
        made = assignment(
            f"1-{number}",
            owner,
            draw(st.sampled_from("abz")),
            generation=draw(st.integers(1, owner.generation)),
        )
        state = draw(st.sampled_from([None, "starting", "serving", "stopping", "failed"]))
        running.append((made, state))
    present = draw(st.lists(st.sampled_from(FUNCTIONS), unique_by=lambda f: f.key))
    demand = {
        f.key: Demand(
            draw(st.integers(0, 5)),
            draw(st.integers(0, 5)),
            tuple(NOW - age for age in draw(st.lists(st.floats(0, 600), max_size=4))),
        )
        for f in present
        if draw(st.booleans())
    }
    return snapshot(present, nodes, running), demand


def carried_out(seen: Snapshot, made: Plan) -> Snapshot:
    left = {i: a for i, a in seen.assignments.items() if i not in stopped(made)}
    left |= {a.instance_id: a for a in made.starts}
    return dataclasses.replace(seen, assignments=left, assignment_index=None)


@settings(max_examples=300, deadline=None)
@given(clusters())
def test_no_plan_breaks_an_invariant(cluster: tuple[Snapshot, dict[str, Demand]]) -> None:
    seen, demand = cluster
    made = decide(seen, demand)
    after = carried_out(seen, made)
    addresses = [a.address for a in after.assignments.values()]
    assert len(addresses) == len(set(addresses))
    assert len(stopped(made)) == len(made.stops)
    for start in made.starts:
        owner = seen.functions[start.function]
        assert start.address in seen.nodes[start.node_id].spare_addresses
        assert start.generation == owner.generation
        here = [a for a in after.assignments.values() if a.node_id == start.node_id]
        assert len(here) <= seen.nodes[start.node_id].instances_maximum
    for key, owner in seen.functions.items():
        current = [a for a in after.assignments_of(key) if a.generation == owner.generation]
        assert len(current) <= owner.scaling.maximum


@settings(max_examples=100, deadline=None)
@given(clusters())
def test_the_same_arguments_give_the_same_plan(cluster: tuple[Snapshot, dict[str, Demand]]) -> None:
    seen, demand = cluster
    tables = ("functions", "nodes", "assignments", "instances")
    reverse = {table: dict(reversed(getattr(seen, table).items())) for table in tables}
    shuffled = dataclasses.replace(seen, **reverse)
    assert decide(seen, demand) == decide(shuffled, demand)


@settings(max_examples=100, deadline=None)
@given(clusters())
def test_a_plan_that_was_carried_out_leaves_nothing_to_start(
    cluster: tuple[Snapshot, dict[str, Demand]],
) -> None:
    seen, demand = cluster
    again = decide(carried_out(seen, decide(seen, demand)), demand, first_number=100)
    assert again.starts == ()


@settings(max_examples=100, deadline=None)
@given(
    dram=st.lists(st.integers(0, GB), min_size=3, max_size=3),
    ssd=st.lists(st.integers(0, GB), min_size=3, max_size=3),
)
def test_the_least_predicted_time_wins(dram: list[int], ssd: list[int]) -> None:
    f = function(checkpoint=MODEL)
    nodes = [node(n) for n in "abc"]
    residents = [
        ResidentRecord(n, MODEL.digest, d, s) for n, d, s in zip("abc", dram, ssd, strict=True)
    ]
    seen = snapshot([f], nodes, residents=residents)
    (start,) = decide(seen, {"f.ns": QUEUED}).starts
    fleet = Fleet(seen.records(), NOW)
    times = dict(zip(fleet.rows.ids, forecast(fleet, f, NOW).seconds, strict=True))
    assert times[start.node_id] == min(times.values())
