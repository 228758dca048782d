import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from stoker.placement.estimate import CONTROL_SECONDS
from stoker.placement.kpa import Kpa
from stoker.placement.placing import PLACINGS
from stoker.placement.simulate import Simulation
from stoker.placement.simulate_files import Cluster, cluster_of
from stoker.placement.simulate_metrics import Outcome
from stoker.placement.simulate_parts import Function, Request
from stoker.placement.simulate_planner import FleetPlanner
from stoker.placement.simulate_run import Conditions, simulate, summary
from stoker.placement.simulate_workload import drawn_requests, made_request

SERVERS: dict[str, Any] = {
    "name": "server",
    "count": 2,
    "devices": 2,
    "device_bandwidth": 10e9,
    "dram_bytes": 100e9,
    "ssd_bytes": 1e12,
    "ssd_bandwidth": 2e9,
    "remote_bandwidth": 1e9,
    "init_seconds": 0.1,
}
MODEL: dict[str, Any] = {
    "name": "m",
    "count": 6,
    "weight_bytes": 10e9,
    "devices": 1,
    "concurrency": 1,
    "token_seconds": 0.02,
    "prompt_token_seconds": 0.0002,
}
LENGTHS = [(100, 50), (200, 200), (50, 400)]


def cluster(nodes: dict[str, Any] | None = None, **functions: Any) -> Cluster:
    return cluster_of(
        {"nodes": [{**SERVERS, **(nodes or {})}], "functions": [{**MODEL, **functions}]}, "here"
    )


def bursts(functions: Sequence[Function], seed: int) -> list[Request]:
    return drawn_requests(functions, LENGTHS, rate=0.8, variation=4.0, seconds=400.0, seed=seed)


def calls(*moments: float, tokens: int = 50) -> Any:
    """The first function is called at these moments, the others never."""

    def made(functions: Sequence[Function], _seed: int) -> list[Request]:
        return [made_request(n, functions[0], at, 0, tokens) for n, at in enumerate(moments)]

    return made


def test_a_cold_start_takes_as_long_as_its_slowest_link_and_the_next_one_is_warm() -> None:
    found = simulate(cluster(), calls(0.0, 10.0), "stoker", 1)
    assert list(found.start_seconds) == pytest.approx([5.0 + CONTROL_SECONDS, 0.0])
    assert found.tiers == {"ssd": 1, "warm": 1}


def test_weights_stay_in_memory_when_the_instance_is_gone() -> None:
    found = simulate(cluster(), calls(0.0, 100.0), "stoker", 1, Conditions(idle_seconds=5.0))
    assert list(found.start_seconds) == pytest.approx(
        [5.0 + CONTROL_SECONDS, 1.0 + CONTROL_SECONDS]
    )
    assert found.tiers == {"ssd": 1, "dram": 1}


def test_without_a_copy_on_an_ssd_weights_come_from_afar() -> None:
    found = simulate(cluster(ssd_copies=0), calls(0.0), "stoker", 1)
    assert list(found.start_seconds) == pytest.approx([10.0 + CONTROL_SECONDS])


def test_a_request_waits_for_a_busy_instance_where_that_is_sooner() -> None:
    """The second comes while the first runs for another second; a start takes five."""
    waiting = simulate(cluster(), calls(0.0, 20.0, 20.5, tokens=50), "stoker", 1)
    assert waiting.starts == 1
    assert waiting.tiers["busy"] == 1
    assert max(waiting.start_seconds[1:]) == pytest.approx(0.5)


@pytest.mark.parametrize("policy", sorted(PLACINGS))
def test_the_same_seed_gives_the_same_outcome(policy: str) -> None:
    first, again, other = (simulate(cluster(), bursts, policy, seed) for seed in (7, 7, 8))
    assert first.figures() == again.figures()
    assert first.start_seconds == again.start_seconds
    assert first.start_seconds != other.start_seconds


class Watched(Simulation):
    """Looks after each event that what holds always holds."""

    def _step(self) -> None:
        super()._step()
        for node in self._world.nodes.values():
            here = [i for i in self._instances.values() if i.node is node and not i.blockers]
            taken = list(itertools.chain(*(i.assignment.devices for i in here)))
            assert len(taken) == len(set(taken)), "a device has two instances"
            assert not here or node.up
        for function in self._functions:
            running = [i for i in self._instances.values() if i.function is function]
            assert function.in_flight == sum(len(i.running) for i in running)
            for instance in running:
                assert len(instance.running) <= function.record.scaling.concurrency
                assert instance.state != "gone"


@pytest.mark.parametrize("policy", sorted(PLACINGS))
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_request_is_lost_and_no_device_used_twice(policy: str, seed: int) -> None:
    described = cluster(concurrency=1 + seed % 2)
    functions = described.made_functions(20.0)
    requests = bursts(functions, seed)
    failures = [(50.0, "server-0", 30.0), (120.0, "server-1", 5.0), (200.0, "server-0", 60.0)]
    simulation = Watched(
        described.world(),
        functions,
        FleetPlanner(PLACINGS[policy], seed),
        failures=failures,
    )
    found = simulation.run(requests)
    assert len(found.start_seconds) == len(requests)
    assert found.unfinished == 0
    assert found.failures == 3
    # All that was to run did run, and what was computed twice is not counted.
    total = sum(r.prompt_tokens * 0.0002 + r.output_tokens * 0.02 for r in bursts(functions, seed))
    assert found.busy_seconds == pytest.approx(total)


def busy_and_wanted(policy: str) -> Outcome:
    """Two models fill the node that has a third one in its memory; the other node has room."""
    described = cluster_of(
        {
            "nodes": [{**SERVERS, "devices": 1}],
            "functions": [{**MODEL, "count": 2, "ssd_copies": 1}],
        },
        "here",
    )

    def made(functions: Sequence[Function], _seed: int) -> list[Request]:
        first, second = functions
        return [
            made_request(0, first, 0.0, 10, 10),  # brings it to its own node
            made_request(1, second, 30.0, 10, 10),
            made_request(2, first, 60.0, 10, 4000),
            made_request(3, second, 61.0, 10, 4000),
            made_request(4, first, 70.0, 10, 10),
        ]

    return simulate(described, made, policy, 1, Conditions(idle_seconds=1.0))


def test_the_baselines_make_room_as_they_are_known_for() -> None:
    outcomes = {policy: busy_and_wanted(policy) for policy in ("random", "shepherd")}
    assert outcomes["random"].preemptions == 0
    assert outcomes["shepherd"].preemptions > 0
    assert outcomes["shepherd"].migrations == outcomes["random"].migrations == 0


def test_running_work_moves_away_from_the_node_that_starts_sooner() -> None:
    """Its own node holds the called model in memory and is taken; the other has it not at all."""
    described = cluster_of(
        {
            "nodes": [{**SERVERS, "devices": 1, "remote_bandwidth": 1e8}],
            "functions": [
                {**MODEL, "name": "far", "count": 1, "ssd_copies": 1},
                {**MODEL, "name": "small", "count": 1, "weight_bytes": 1e9},
            ],
        },
        "here",
    )

    def made(functions: Sequence[Function], _seed: int) -> list[Request]:
        far, small = functions
        return [
            made_request(0, far, 0.0, 10, 10),
            made_request(1, small, 20.0, 10, 10),
            # It takes the node where `far` lies in memory.
            made_request(2, small, 40.0, 10, 2000),
            made_request(3, small, 40.1, 10, 2000),
            made_request(4, far, 50.0, 10, 10),
        ]

    for policy in ("serverlessllm", "stoker"):
        found = simulate(described, made, policy, 1, Conditions(idle_seconds=1.0))
        assert len(found.start_seconds) == 5
        assert found.preemptions == 0


def test_who_waits_too_long_is_given_up() -> None:
    found = simulate(
        cluster({"count": 1, "devices": 1}),
        calls(*(float(n) for n in range(20)), tokens=500),
        "random",
        1,
        Conditions(timeout_seconds=30.0),
    )
    assert found.timeouts > 0
    assert len(found.start_seconds) == 20
    assert max(found.start_seconds) == pytest.approx(30.0)


def test_averages_scale_a_simulated_function() -> None:
    described = cluster({"devices": 0, "instances": 20}, devices=0, count=1, weight_bytes=0)
    kpa = Kpa(target=1.0, initial=0)
    functions = described.made_functions()
    functions[0].record = dataclasses.replace(
        functions[0].record,
        scaling=dataclasses.replace(functions[0].record.scaling, kpa=kpa),
    )
    requests = [made_request(n, functions[0], 0.0, 0, 100) for n in range(5)]
    simulation = Simulation(described.world(), functions, FleetPlanner(PLACINGS["stoker"]))
    found = simulation.run(requests)
    assert found.starts == 8
    assert 90.0 < found.end < 110.0


def test_a_minimum_runs_from_the_beginning() -> None:
    found = simulate(cluster(minimum=1, count=1), calls(10.0), "stoker", 1)
    assert list(found.start_seconds) == [0.0]


def test_the_summary_is_the_median_with_its_spread() -> None:
    outcomes = [simulate(cluster(), bursts, "stoker", seed) for seed in (1, 2, 3)]
    found = summary(outcomes)
    late = sorted(outcome.figures()["start_seconds_p99"] for outcome in outcomes)
    assert found["start_seconds_p99"] == late[1]
    assert found["spread"]["start_seconds_p99"] == [late[0], late[2]]
    assert found["seeds"] == 3


def test_an_idle_disk_reads_ahead_and_makes_way_for_who_waits() -> None:
    found = simulate(cluster(), calls(0.0, 100.0), "stoker", 1)
    # Six models of 10 GB on each of two nodes; the first one was waited for.
    assert found.prefetches == 2 * 6 - 1
    assert found.start_seconds[0] <= 5.0 + 0.6 + CONTROL_SECONDS


def test_what_was_deployed_before_its_first_call_starts_from_memory() -> None:
    deployed = Conditions(deployed_seconds=100.0)
    found = simulate(cluster(), calls(0.0), "stoker", 1, deployed)
    assert list(found.start_seconds) == pytest.approx([1.0 + CONTROL_SECONDS])
    baseline = simulate(cluster(), calls(0.0), "serverlessllm", 1, deployed)
    assert baseline.prefetches == 0
    assert baseline.start_seconds[0] > 5.0


def test_what_was_read_ahead_is_not_read_again() -> None:
    """Half of the first model is in memory when somebody calls it."""
    found = simulate(cluster({"count": 1}, count=1), calls(2.7), "stoker", 1)
    assert 2.0 < found.start_seconds[0] < 3.2
