import dataclasses
import threading
from collections.abc import Callable, Iterator

import pytest

from harness.cluster import EPOCH_PATH, FUNCTION, Cluster
from stoker.placement.controller import Controller
from stoker.placement.errors import (
    CoordinationLost,
    FunctionNotFound,
    NoCapacity,
    Unavailable,
)
from stoker.placement.picture import ADDRESS_REST_SECONDS
from stoker.placement.records import (
    Assignment,
    FunctionDemand,
    LeaderRecord,
    PlaceRequest,
    Scaling,
    encode,
)
from stoker.placement.view import LEADER_PATH, View

ONE = dataclasses.replace(FUNCTION, scaling=dataclasses.replace(FUNCTION.scaling, maximum=1))


def test_a_place_is_answered_with_an_assignment_that_is_in_the_store(cluster: Cluster) -> None:
    assert cluster.place() == ["1-0"]
    (made,) = cluster.assigned()
    assert made == Assignment("1-0", "f.ns", 1, "n", "n:0", 1, 1000.0)


def test_two_hundred_places_while_one_is_starting_make_one_assignment(cluster: Cluster) -> None:
    cluster.deploy(ONE)
    answers: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda n=n: answers.append(cluster.place(queued=n + 1)))
        for n in range(200)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [["1-0"]] * 200
    assert len(cluster.assigned()) == 1


def test_demand_of_all_gateways_counts_up_to_the_maximum(cluster: Cluster) -> None:
    assert cluster.place(gateway="a") == ["1-0"]
    assert cluster.place(gateway="b") == ["1-0", "1-1"]
    assert cluster.place(gateway="c") == ["1-0", "1-1"]


def test_a_place_without_demand_still_starts_one(cluster: Cluster) -> None:
    assert cluster.place(queued=0) == ["1-0"]


def test_serving_instances_come_first_in_the_answer(cluster: Cluster) -> None:
    cluster.place(queued=2)
    cluster.announce(cluster.assigned()[1], "serving")
    assert cluster.place(queued=2) == ["1-1", "1-0"]


def test_a_function_that_the_view_has_not_heard_of_is_read_from_the_store() -> None:
    cluster = Cluster()
    cluster.join()
    cluster.elect()
    cluster.view.close()
    cluster.deploy()
    assert cluster.place() == ["1-0"]


def test_an_unknown_function_is_not_found(cluster: Cluster) -> None:
    with pytest.raises(FunctionNotFound, match="none called g in ns"):
        cluster.place(function="g.ns")


def test_a_non_leader_names_the_leader() -> None:
    cluster = Cluster()
    cluster.deploy()
    cluster.store.put(LEADER_PATH, encode(LeaderRecord("other", "10.0.0.1:7", 1)))
    with pytest.raises(Unavailable, match=r"10\.0\.0\.1:7") as caught:
        cluster.place()
    assert caught.value.retry_after_seconds == 1.0
    with pytest.raises(Unavailable):
        cluster.report()
    assert cluster.controller.reconcile() is False


def test_without_a_node_there_is_no_capacity(cluster: Cluster) -> None:
    cluster.store.delete("/nodes/n")
    with pytest.raises(NoCapacity, match="none registered") as caught:
        cluster.place()
    assert caught.value.retry_after_seconds == 5.0


def test_no_capacity_gives_the_reason_of_each_node(cluster: Cluster) -> None:
    cluster.join("n", sockets=0)
    cluster.join("m", instances_maximum=0)
    with pytest.raises(NoCapacity, match=r"node m: 0 of 0 .*; node n: no listening socket"):
        cluster.place()


def test_room_that_comes_is_for_the_higher_priority_whoever_asks_first(cluster: Cluster) -> None:
    cluster.join(instances_maximum=0)
    high = dataclasses.replace(FUNCTION, name="high", priority=5)
    cluster.deploy(high)
    for key in ("high.ns", "f.ns"):
        with pytest.raises(NoCapacity):
            cluster.place(function=key)
    cluster.join(instances_maximum=1)
    with pytest.raises(NoCapacity):
        cluster.place(function="f.ns")
    assert [made.function for made in cluster.assigned()] == ["high.ns"]


def test_at_its_limit_a_function_keeps_what_it_has(cluster: Cluster) -> None:
    cluster.join(sockets=1)
    assert cluster.place(queued=5) == ["1-0"]
    assert cluster.place(queued=5) == ["1-0"]


def test_an_idle_function_goes_after_its_idle_time(cluster: Cluster) -> None:
    cluster.place()
    cluster.serve()
    cluster.report(in_flight=1)
    cluster.now += 59.0
    cluster.report(idle_seconds=59.0)
    assert len(cluster.assigned()) == 1
    cluster.now += 1.0
    cluster.report(idle_seconds=60.0)
    assert cluster.assigned() == []


def test_a_request_between_two_reports_counts_as_use(cluster: Cluster) -> None:
    cluster.place()
    cluster.serve()
    cluster.now += 50.0
    cluster.report(idle_seconds=0.3)
    cluster.now += 50.0
    cluster.controller.reconcile()
    assert len(cluster.assigned()) == 1


def test_a_gateway_that_fell_silent_holds_no_instance_beyond_the_idle_time(
    cluster: Cluster,
) -> None:
    cluster.report(in_flight=1)
    cluster.place()
    cluster.serve()
    cluster.now += 61.0
    cluster.controller.reconcile()
    assert cluster.assigned() == []


def test_scaling_to_zero_stops_at_once_and_the_next_call_starts_again(cluster: Cluster) -> None:
    cluster.place()
    cluster.serve()
    cluster.now += 1.0
    cluster.report(idle_seconds=0.5)
    for _ in range(2):
        cluster.deploy(dataclasses.replace(FUNCTION, replicas_requested=0))
        cluster.controller.reconcile()
        assert cluster.assigned() == []
        cluster.now += 1.0
        assert len(cluster.place()) == 1
        cluster.report(idle_seconds=0.0)
        assert len(cluster.assigned()) == 1
        cluster.now += 1.0


def test_a_call_in_flight_when_scaled_to_zero_is_served_and_keeps_nothing(
    cluster: Cluster,
) -> None:
    cluster.place()
    cluster.serve()
    version = cluster.version()
    cluster.report(in_flight=1)
    cluster.deploy(dataclasses.replace(FUNCTION, replicas_requested=0))
    cluster.now += 1.0
    cluster.report(in_flight=1, version=version)
    assert len(cluster.assigned()) == 1
    cluster.now += 1.0
    # What a report says of the past arrives late: the call seems to end after the request.
    cluster.report(idle_seconds=0.0, version=version)
    assert cluster.assigned() == []


def test_asking_for_the_same_replicas_again_starts_them_again(cluster: Cluster) -> None:
    for _ in range(2):
        cluster.deploy(dataclasses.replace(FUNCTION, replicas_requested=2))
        cluster.controller.reconcile()
        assert len(cluster.assigned()) == 2
        cluster.now += 60.0
        cluster.controller.reconcile()
        assert cluster.assigned() == []


def test_a_function_called_every_hour_is_ready_before_its_next_call(cluster: Cluster) -> None:
    hourly = dataclasses.replace(FUNCTION, scaling=Scaling(maximum=2, concurrency=1))
    cluster.deploy(hourly)
    for _ in range(11):
        assert len(cluster.place()) == 1
        cluster.serve()
        cluster.report(idle_seconds=0.0)
        cluster.now += 3599.0
        cluster.report(idle_seconds=3599.0)
        for made in cluster.store.list("/instances"):
            cluster.store.delete(made.path)
        cluster.now += 1.0
    cluster.place()
    cluster.serve()
    seen = {}
    for second in range(0, 4201, 60):
        cluster.report(idle_seconds=float(second))
        seen[second] = len(cluster.assigned())
        cluster.serve()
        cluster.now += 60.0
    there = [second for second, count in seen.items() if count]
    assert there == [0, *range(3240, 4026, 60)]


def test_a_minimum_is_started_by_reconcile_alone(cluster: Cluster) -> None:
    warm = dataclasses.replace(FUNCTION, scaling=Scaling(minimum=2, maximum=2))
    cluster.deploy(warm)
    cluster.controller.reconcile()
    assert len(cluster.assigned()) == 2


def test_deleting_a_function_removes_its_assignments(cluster: Cluster) -> None:
    cluster.place()
    cluster.store.delete(FUNCTION.path)
    cluster.controller.reconcile()
    assert cluster.assigned() == []


class TestAddresses:
    def test_an_address_rests_until_its_node_has_replaced_it(self, cluster: Cluster) -> None:
        cluster.join(sockets=1)
        cluster.place()
        cluster.announce(cluster.assigned()[0], "failed")
        cluster.controller.reconcile()
        cluster.store.delete("/instances/n/1-0")
        cluster.now += 1.0
        with pytest.raises(NoCapacity, match="no listening socket"):
            cluster.place()
        cluster.join(spare_addresses=("n:99",))
        assert cluster.place() == ["1-1"]
        assert cluster.assigned()[0].address == "n:99"

    def test_an_address_that_was_never_used_comes_back(self, cluster: Cluster) -> None:
        cluster.join(sockets=1)
        cluster.place()
        cluster.deploy(dataclasses.replace(FUNCTION, replicas_requested=0))
        cluster.now += 6.0
        cluster.controller.reconcile()
        assert cluster.assigned() == []
        cluster.now += ADDRESS_REST_SECONDS
        assert len(cluster.place()) == 1


class TestLeadership:
    def test_a_new_leader_keeps_what_runs_until_it_knows_better(self, cluster: Cluster) -> None:
        cluster.place()
        cluster.serve()
        own = cluster.store.session()
        successor = Controller(own, View(own), "successor", lambda: cluster.now)
        cluster.now += 50.0
        cluster.elect(successor)
        successor.reconcile()
        assert len(cluster.assigned()) == 1
        cluster.now += 60.0
        successor.reconcile()
        assert cluster.assigned() == []

    def test_a_new_leader_does_not_carry_out_an_old_scale_request(self, cluster: Cluster) -> None:
        cluster.deploy(dataclasses.replace(FUNCTION, replicas_requested=0))
        cluster.controller.reconcile()
        cluster.now += 1.0
        cluster.place()
        own = cluster.store.session()
        successor = Controller(own, View(own), "successor", lambda: cluster.now)
        cluster.elect(successor)
        successor.reconcile()
        assert len(cluster.assigned()) == 1

    def test_instance_ids_of_two_leaders_never_meet(self, cluster: Cluster) -> None:
        cluster.place()
        own = cluster.store.session()
        successor = Controller(own, View(own), "successor", lambda: cluster.now)
        cluster.elect(successor)
        answer = successor.place(PlaceRequest("g", "f.ns", FunctionDemand(0, 2, 0.0)))
        assert [a.instance_id for a in answer.assignments] == ["1-0", "2-0"]

    def test_a_deposed_leader_writes_nothing_and_stops(self, cluster: Cluster) -> None:
        cluster.store.put(EPOCH_PATH, b"another")
        with pytest.raises(Unavailable):
            cluster.place()
        assert cluster.assigned() == []
        assert not cluster.controller.leading
        with pytest.raises(Unavailable):
            cluster.place()

    def test_a_leader_without_a_store_pauses_and_goes_on_when_it_is_back(
        self, cluster: Cluster
    ) -> None:
        cluster.own.suspend()
        with pytest.raises(CoordinationLost):
            cluster.place()
        with pytest.raises(Unavailable):
            cluster.place()
        assert cluster.controller.reconcile() is False
        cluster.own.resume()
        cluster.controller.reconcile()
        assert cluster.controller.leading
        assert len(cluster.place()) == 1

    def test_who_lost_the_election_decides_no_more(self, cluster: Cluster) -> None:
        cluster.controller.on_lost()
        assert not cluster.controller.leading
        cluster.deploy(dataclasses.replace(FUNCTION, scaling=Scaling(minimum=1)))
        assert cluster.controller.reconcile() is False
        assert cluster.assigned() == []


@pytest.fixture
def running(cluster: Cluster) -> Iterator[Cluster]:
    cluster.controller.start()
    yield cluster
    cluster.controller.close()


def eventually(cluster: Cluster, holds: Callable[[], bool]) -> None:
    cluster.view.wait_for(lambda _: holds(), timeout_seconds=5.0)


def test_a_change_of_the_store_wakes_the_loop(running: Cluster) -> None:
    warm = dataclasses.replace(FUNCTION, scaling=Scaling(minimum=1, maximum=1))
    running.deploy(warm)
    eventually(running, lambda: len(running.view.snapshot().assignments) == 1)
    running.store.delete(FUNCTION.path)
    eventually(running, lambda: not running.view.snapshot().assignments)


def test_a_closed_controller_decides_no_more(running: Cluster) -> None:
    running.controller.close()
    running.deploy(dataclasses.replace(FUNCTION, scaling=Scaling(minimum=1, maximum=1)))
    assert running.assigned() == []
