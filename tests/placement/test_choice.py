"""Where one more instance goes: the columns against the same done node by node, and the rules."""

import dataclasses
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import fleets
from harness.fleets import FUNCTIONS, Case, cases, exhaustive, has_room, start_seconds
from harness.plans import GB, NOW, assignment, function, instance, node
from stoker.placement.choice import Ask, Candidate, _Choice, choose
from stoker.placement.estimate import CONTROL_SECONDS, PREFILL_SECONDS, resume_seconds
from stoker.placement.fleet import Fleet, Placed, Work
from stoker.placement.forecast import forecast
from stoker.placement.learnt import PARKED
from stoker.placement.placing import EVERY_ABILITY, PLACINGS, STOKER, Placing
from stoker.placement.records import (
    CheckpointRef,
    DeviceNeed,
    FunctionRecord,
    NodeRecord,
    Record,
    ResidentRecord,
)
from stoker.placement.room import Lack, Option, Victim, make_room
from stoker.placement.survey import survey

MODEL = CheckpointRef("s3://b/m", "a" * 64, 4 * GB, packed=True)
OTHER = CheckpointRef("s3://b/o", "b" * 64, 4 * GB, packed=True)
ONE = (DeviceNeed("gpu", 1),)
DRAM = {"dram_bytes": 64 * GB}


@settings(max_examples=200, deadline=None)
@given(cases(), st.sampled_from(FUNCTIONS))
def test_the_forecast_over_columns_is_that_of_each_node(case: Case, owner: FunctionRecord) -> None:
    fleet = case.fleet()
    found = dict(zip(fleet.rows.ids, forecast(fleet, owner, NOW).seconds, strict=True))
    expected = {on.node_id: start_seconds(case, owner, on) for on in case.nodes}
    assert found == pytest.approx(expected)


@settings(max_examples=200, deadline=None)
@given(cases(), st.sampled_from(FUNCTIONS))
def test_who_has_room_is_the_same_node_by_node(case: Case, owner: FunctionRecord) -> None:
    fleet = case.fleet()
    found = dict(zip(fleet.rows.ids, survey(fleet, owner).free.tolist(), strict=True))
    assert found == {on.node_id: has_room(case, owner, on) for on in case.nodes}


# Zones and promises are ruled out here and have tests of their own.
PLAIN = [
    dataclasses.replace(placing, careful=False) if placing is STOKER else placing
    for placing in PLACINGS.values()
]


@settings(max_examples=300, deadline=None)
@given(
    cases(),
    st.sampled_from(FUNCTIONS),
    st.sampled_from(PLAIN),
    st.booleans(),
    st.sets(st.sampled_from("abcd"), max_size=2),
)
def test_what_is_picked_is_what_comparing_every_node_in_full_finds(
    case: Case, owner: FunctionRecord, placing: Placing, waited: bool, avoid: set[str]
) -> None:
    fleet = case.fleet()
    ask = Ask(owner, waited=waited, avoid=frozenset(avoid), number=3)
    made = choose(fleet, ask, NOW, placing=placing, abilities=EVERY_ABILITY, giving=fleets.given)
    expected = exhaustive(fleet, ask, placing)
    if expected is None:
        assert made.chosen is None
    else:
        assert made.chosen is not None
        row = fleet.rows.ids.index(expected[0])
        assert (made.chosen.node_id, float(made.survey.seconds[row])) == (
            expected[0],
            pytest.approx(expected[1]),
        )


@settings(max_examples=100, deadline=None)
@given(cases(), st.randoms(use_true_random=False), st.sampled_from(FUNCTIONS))
def test_the_order_in_which_records_come_decides_nothing(
    case: Case, chance: object, owner: FunctionRecord
) -> None:
    records = case.records()
    shuffled = list(records)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    chosen = [
        choose(
            case.fleet(order), Ask(owner), NOW, abilities=EVERY_ABILITY, giving=fleets.given
        ).chosen
        for order in (records, shuffled)
    ]
    assert chosen[0] == chosen[1]


@settings(max_examples=100, deadline=None)
@given(cases(), cases())
def test_a_fleet_that_followed_changes_is_one_that_was_made_anew(before: Case, after: Case) -> None:
    fleet = before.fleet()
    kept = {record.path: record for record in after.records()}
    for record in before.records():
        # What is under way keeps the speed that it began at: a node of another is another node.
        if record.path not in kept or _speeds(record) != _speeds(kept[record.path]):
            fleet.drop(record, NOW)
    for record in after.records():
        fleet.put(record, NOW)
    for instance_id in {made.instance_id for made, _ in after.running}:
        fleet.note_work(instance_id, after.work.get(instance_id))
    anew = after.fleet()
    for owner in FUNCTIONS:
        ask = Ask(owner)
        assert (
            choose(fleet, ask, NOW, abilities=EVERY_ABILITY, giving=fleets.given).chosen
            == choose(anew, ask, NOW, abilities=EVERY_ABILITY, giving=fleets.given).chosen
        )


def _speeds(record: Record) -> tuple[float, ...]:
    if not isinstance(record, NodeRecord):
        return ()
    return (
        record.remote_bandwidth,
        record.ssd_bandwidth,
        record.peer_bandwidth,
        record.device_bandwidth,
    )


def option(number: int, devices: int, seconds: float, loss: float) -> Option:
    made = assignment(f"1-{number}", FUNCTIONS[0], devices=tuple(range(devices)))
    victim = Victim(made, "migrate", seconds)
    return Option(victim, loss, (loss,), Placed(made, 0))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 9)), max_size=6),
    st.integers(1, 6),
    st.sampled_from([0.0, 5.0]),
    st.booleans(),
)
def test_the_victims_are_those_with_which_start_and_loss_are_least(
    sizes: list[tuple[int, int, int]], devices: int, load: float, serial: bool
) -> None:
    """Room that is there before the load is done makes the start no later."""
    fleet = Fleet([node()], NOW)
    options = [option(n, size, float(s), float(loss)) for n, (size, s, loss) in enumerate(sizes)]

    def start(room_seconds: float) -> float:
        return room_seconds if serial else max(load, room_seconds)

    def cost(chosen: tuple[Option, ...]) -> float:
        times = [o.victim.seconds for o in chosen]
        room = sum(times) if serial else max(times, default=0.0)
        return start(room) + sum(o.loss_seconds for o in chosen)

    sets = [
        chosen
        for count in range(len(options) + 1)
        for chosen in itertools.combinations(options, count)
        if sum(len(o.placed.assignment.devices) for o in chosen) >= devices
    ]
    lack = Lack(slots=0, devices=devices, checkpoint=None)
    room = make_room(fleet, 0, lack, options, start, serial=serial)
    if not sets:
        assert room is None
    else:
        assert room is not None
        assert start(room.seconds) + room.loss_seconds == min(map(cost, sets))


class TestPolicies:
    """Two nodes of one device each: `near` holds MODEL in DRAM and runs `busy`, `far` has it on
    its SSD and runs nothing.
    """

    chat = function("chat", MODEL, devices=ONE)
    busy = function("busy", OTHER, devices=ONE)

    def fleet(self, ends_in: float = 60.0, **fields: float) -> Fleet:
        common = {"device_kind": "gpu", "device_count": 1, "device_bandwidth": 8.0 * GB}
        common |= {"dram_bytes": 64 * GB, "ssd_bandwidth": 1.0 * GB}
        nodes = [node(name, **common, **fields) for name in ("near", "far")]
        running = assignment("1-0", self.busy, "near", devices=(0,))
        records = [
            ResidentRecord("near", MODEL.digest, MODEL.weight_bytes, 0),
            ResidentRecord("far", MODEL.digest, 0, MODEL.weight_bytes),
            ResidentRecord("far", OTHER.digest, OTHER.weight_bytes, 0),
            running,
            instance(running),
        ]
        fleet = Fleet([self.chat, self.busy, *nodes, *records], NOW)
        fleet.note_work("1-0", Work(tokens=100, ends_at=NOW + ends_in))
        return fleet

    def chosen(self, policy: str, ends_in: float = 60.0) -> Candidate:
        made = choose(
            self.fleet(ends_in),
            Ask(self.chat),
            NOW,
            placing=PLACINGS[policy],
            abilities=EVERY_ABILITY,
        )
        assert made.chosen is not None
        return made.chosen

    @pytest.mark.parametrize("policy", ["random", "availability"])
    def test_who_looks_at_room_alone_takes_the_free_node(self, policy: str) -> None:
        chosen = self.chosen(policy)
        assert (chosen.node_id, chosen.kind, chosen.victims) == ("far", "ssd", ())

    def test_locality_waits_for_the_place_beside_the_weights(self) -> None:
        chosen = self.chosen("locality")
        assert (chosen.node_id, chosen.kind) == ("near", "wait")
        assert chosen.seconds == pytest.approx(60.0 + CONTROL_SECONDS + 0.5 + PREFILL_SECONDS)

    def test_shepherd_preempts_what_runs_there(self) -> None:
        chosen = self.chosen("shepherd")
        assert (chosen.node_id, chosen.kind) == ("near", "preempt")
        assert chosen.seconds == pytest.approx(CONTROL_SECONDS + 0.5 + PREFILL_SECONDS)

    def test_serverlessllm_moves_it_to_the_other_node(self) -> None:
        chosen = self.chosen("serverlessllm")
        assert (chosen.node_id, chosen.kind) == ("near", "migrate")
        (victim,) = chosen.victims
        elsewhere = CONTROL_SECONDS + 0.5 + PREFILL_SECONDS + resume_seconds(100)
        assert (victim.target, victim.seconds) == ("far", pytest.approx(elsewhere))

    def test_stoker_moves_it_unless_waiting_is_sooner(self) -> None:
        assert self.chosen("stoker").kind == "migrate"
        assert self.chosen("stoker", ends_in=0.2).kind == "wait"

    def test_nodes_that_cannot_migrate_or_preempt_are_not_asked_to(self) -> None:
        for policy in ("shepherd", "serverlessllm", "stoker"):
            made = choose(self.fleet(), Ask(self.chat), NOW, placing=PLACINGS[policy])
            assert made.chosen is not None
            assert (made.chosen.node_id, made.chosen.victims) == ("far", ())


def test_stoker_preempts_a_lower_priority_only() -> None:
    low, high = function("low"), function("high", priority=1)
    running = assignment("1-0", low)
    records = [node(instances_maximum=1), low, high, running, instance(running)]
    fleet = Fleet(records, NOW)
    fleet.note_work("1-0", Work(tokens=1, ends_at=math.inf, resumable=False))
    asked = choose(fleet, Ask(high), NOW, abilities=EVERY_ABILITY).chosen
    assert asked is not None
    assert asked.kind == "preempt"
    equal = dataclasses.replace(low, name="equal")
    assert choose(fleet, Ask(equal), NOW, abilities=EVERY_ABILITY).chosen is None


def test_an_instance_that_is_free_sooner_is_waited_for() -> None:
    f = function("f", MODEL)
    running = assignment("1-0", f)
    fleet = Fleet([node(**DRAM), f, running, instance(running)], NOW)
    soon = choose(fleet, Ask(f, existing=("1-0", 0.1)), NOW).chosen
    assert soon is not None
    assert (soon.kind, soon.instance_id) == ("wait", "1-0")
    late = choose(fleet, Ask(f, existing=("1-0", 100.0)), NOW).chosen
    assert late is not None
    assert (late.kind, late.instance_id) == ("remote", "")


def test_the_node_where_a_process_stands_by_comes_before_one_that_is_as_near_to_the_weights() -> (
    None
):
    f = function("f", MODEL)
    held = [ResidentRecord(name, MODEL.digest, 4 * GB, 0) for name in ("a", "b")]
    nodes = [node("a", **DRAM), dataclasses.replace(node("b", **DRAM), parked=(f.key,))]
    fleet = Fleet([f, *nodes, *held], NOW)
    for rung, seconds in ((0, 0.3), (PARKED, 0.02)):
        fleet.learnt.note_process(f.key, "b", rung, seconds)
    chosen = choose(fleet, Ask(f), NOW).chosen
    assert chosen is not None
    assert (chosen.kind, chosen.node_id) == ("parked", "b")
    assert chosen.seconds == pytest.approx(CONTROL_SECONDS + 0.02 + PREFILL_SECONDS)
    fleet.drop(nodes[1], NOW)
    other = choose(fleet, Ask(f), NOW).chosen
    assert other is not None
    assert (other.kind, other.node_id) == ("dram", "a")


@settings(max_examples=200, deadline=None)
@given(cases(), st.sampled_from(FUNCTIONS), st.sampled_from(PLAIN))
def test_no_way_to_make_room_costs_less_than_was_reckoned_for_all_nodes_at_once(
    case: Case, owner: FunctionRecord, placing: Placing
) -> None:
    fleet = case.fleet()
    choice = _Choice(fleet, Ask(owner), NOW, placing, EVERY_ABILITY, fleets.given)
    least = choice._ways.least_costs(choice._forecast)
    for row in range(fleet.rows.size):
        room = None if choice._survey.free[row] else choice._room(row)
        if room is not None and room.victims:
            cost = float(choice._forecast.after(room.seconds, row)) + room.loss_seconds
            assert least[row] <= cost + 1e-9


class TestPromises:
    """One node that reads 1 GB/s; `first` is promised to start within so many seconds."""

    @pytest.mark.parametrize(("promised", "expected"), [(6.0, "b"), (9.0, "a")])
    def test_a_load_goes_where_it_breaks_no_promise(self, promised: float, expected: str) -> None:
        first = function("first", OTHER)
        f = function("f", MODEL)
        held = [ResidentRecord("a", ref.digest, 0, 4 * GB) for ref in (MODEL, OTHER)]
        fleet = Fleet([node("a", **DRAM), node("b", **DRAM), first, f, *held], NOW)
        fleet.put(assignment("1-0", first, "a"), NOW, deadline=NOW + promised)
        chosen = choose(fleet, Ask(f), NOW).chosen
        assert chosen is not None
        assert chosen.node_id == expected

    @pytest.mark.parametrize(("waited", "promised"), [(0.0, 9.0), (2.0, 7.0), (6.0, math.inf)])
    def test_a_start_promises_what_its_function_states_from_the_arrival_on(
        self, waited: float, promised: float
    ) -> None:
        """It takes 4.1 s; what cannot be kept any more is not promised."""
        f = function("f", MODEL, slo_ttft_seconds=9.0)
        held = ResidentRecord("n", MODEL.digest, 0, 4 * GB)
        fleet = Fleet([node(**DRAM), f, held], NOW)
        chosen = choose(fleet, Ask(f, since=NOW - waited), NOW).chosen
        assert chosen is not None
        assert chosen.deadline == NOW + promised - PREFILL_SECONDS

    def test_a_long_prefill_leaves_less_time_for_the_load(self) -> None:
        f = function("f", MODEL, slo_ttft_seconds=9.0)
        held = ResidentRecord("n", MODEL.digest, 0, 4 * GB)
        fleet = Fleet([node(**DRAM), f, held], NOW)
        chosen = choose(fleet, Ask(f, since=NOW - 1.0, prefill_seconds=3.0), NOW).chosen
        assert chosen is not None
        assert chosen.deadline == NOW + 5.0
        assert chosen.stages.prefill == 3.0


class TestZones:
    f = function("f", MODEL)

    def chosen(self, waited: bool, slower: float = 1.0) -> str:
        nodes: list[NodeRecord] = [
            node("a", zone="x", **DRAM),
            node("b", zone="x", **DRAM),
            node("c", zone="y", remote_bandwidth=0.1 * GB / slower, **DRAM),
        ]
        running = assignment("1-0", self.f, "a")
        fleet = Fleet([self.f, *nodes, running, instance(running)], NOW)
        chosen = choose(fleet, Ask(self.f, waited=waited), NOW).chosen
        assert chosen is not None
        return chosen.node_id

    def test_the_second_instance_goes_to_another_zone(self) -> None:
        assert self.chosen(waited=True) == "c"

    def test_a_much_slower_zone_only_when_nobody_waits(self) -> None:
        assert self.chosen(waited=True, slower=2.0) == "b"
        assert self.chosen(waited=False, slower=2.0) == "c"
