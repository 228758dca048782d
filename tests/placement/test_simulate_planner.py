import math

import pytest

from stoker.placement.placing import PLACINGS
from stoker.placement.simulate_files import cluster_of
from stoker.placement.simulate_parts import Function, Instance
from stoker.placement.simulate_planner import Durations, FleetPlanner
from stoker.placement.simulate_workload import made_request
from stoker.placement.simulate_world import World

CLUSTER = cluster_of(
    {
        "nodes": [{"name": "server", "devices": 1, "ssd_bandwidth": 1e9}],
        "functions": [
            {"name": "m", "count": 2, "weight_bytes": 10e9, "devices": 1, "concurrency": 1}
        ],
    },
    "here",
)


def test_the_rest_of_a_request_is_the_mean_rest_of_those_that_ran_longer() -> None:
    durations = Durations()
    assert durations.left_after(1.0) == math.inf
    for seconds in (1.0, 2.0, 3.0, 10.0):
        durations.add(seconds)
    assert durations.left_after(0.0) == 4.0
    assert durations.left_after(2.5) == 4.0  # 3 - 2.5 and 10 - 2.5
    assert durations.left_after(12.0) == 12.0


def test_who_waits_reckons_with_the_rest_that_one_in_ten_exceeds() -> None:
    durations = Durations()
    assert durations.late_after(1.0) == math.inf
    for seconds in range(1, 21):
        durations.add(float(seconds))
    assert durations.late_after(0.0) == 19.0
    assert durations.late_after(10.5) == 20.0 - 10.5
    assert durations.late_after(25.0) == 25.0


class Told:
    """A planner that knows of one node with an instance of the first function."""

    def __init__(self, policy: str = "stoker") -> None:
        self.world: World = CLUSTER.world()
        self.planner = FleetPlanner(PLACINGS[policy])
        self.functions = CLUSTER.made_functions()
        for node in self.world.nodes.values():
            self.planner.put(node.record, 0.0)
            for digest in node.ssd:
                self.planner.put(node.resident(digest), 0.0)
        for function in self.functions:
            self.planner.put(function.record, 0.0)
        first = self.functions[0]
        assignment = self.planner.assign(first, "server-0", 1, "", 0.0)
        self.instance = Instance(assignment, first, self.world.nodes["server-0"], 0.0)
        self.instance.state = "serving"
        first.instances.append(self.instance)
        self.planner.begins(self.instance, 0.0)

    def ran(self, function: Function, *seconds: float) -> None:
        for one in seconds:
            self.planner.ran(function, one)

    def busy(self, now: float) -> None:
        request = made_request(1, self.functions[0], now, 0, 0)
        self.instance.running[1] = request
        self.planner.works(self.instance, now)


def test_an_idle_instance_gives_way_to_who_waits() -> None:
    told = Told()
    told.planner.works(told.instance, 0.0)
    second = told.functions[1]
    second.queue.append(made_request(2, second, 1.0, 0, 0))
    chosen = told.planner.choose(second, 1.0)
    assert chosen is not None
    assert [victim.how for victim in chosen.victims] == ["stop"]
    assert chosen.device_count == 1


def test_a_request_waits_for_its_own_instance_if_that_is_free_sooner_than_a_start() -> None:
    told = Told()
    first = told.functions[0]
    told.ran(first, *[5.0] * 8)
    told.busy(0.0)
    first.queue.append(made_request(2, first, 1.0, 0, 0))
    chosen = told.planner.choose(first, 1.0)
    assert chosen is not None
    assert chosen.instance_id == told.instance.instance_id
    assert chosen.stages.room == pytest.approx(4.0)


def test_work_that_is_overdue_is_expected_to_last_on() -> None:
    told = Told("locality")
    first, second = told.functions
    told.ran(first, *[5.0] * 8)
    told.busy(0.0)
    second.queue.append(made_request(2, second, 6.0, 0, 0))
    chosen = told.planner.choose(second, 8.0)
    assert chosen is not None
    # It ran for 8 s, which none of those before did: as long again.
    assert [(v.how, v.seconds) for v in chosen.victims] == [("wait", pytest.approx(8.0))]


def test_an_instance_that_others_of_its_own_wait_for_is_not_given_away() -> None:
    told = Told("locality")
    first, second = told.functions
    told.ran(first, *[5.0] * 8)
    told.busy(0.0)
    first.queue.append(made_request(3, first, 1.0, 0, 0))
    told.planner.waits(first, 1.0)
    second.queue.append(made_request(2, second, 1.0, 0, 0))
    assert told.planner.choose(second, 1.0) is None


def test_who_was_preempted_preempts_nobody() -> None:
    told = Told("shepherd")
    first, second = told.functions
    told.ran(first, 100.0)
    told.busy(0.0)
    request = made_request(2, second, 1.0, 0, 0)
    second.queue.append(request)
    chosen = told.planner.choose(second, 1.0)
    assert chosen is not None
    assert [victim.how for victim in chosen.victims] == ["preempt"]
    request.preempted = 1
    assert told.planner.choose(second, 1.0) is None
