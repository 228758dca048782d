"""One leader after another: what the next one takes over, and when the last one is silent."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from harness.cluster import FUNCTION, Cluster
from stoker.placement.controller import Controller
from stoker.placement.demand import REPORT_SECONDS
from stoker.placement.errors import CoordinationLost, Unavailable
from stoker.placement.failures import PAUSE_SECONDS_LAST
from stoker.placement.kpa import Kpa
from stoker.placement.main import steady_clock
from stoker.placement.memory_store import MemoryStore
from stoker.placement.plan import ANNOUNCE_SECONDS
from stoker.placement.records import (
    DemandReport,
    FailureRecord,
    FunctionDemand,
    decode,
    encode,
)
from stoker.placement.store import Fence
from stoker.placement.view import View

HOUR = 3600.0


def successor_of(cluster: Cluster, clock_ahead_seconds: float = 0.0) -> Controller:
    own = cluster.store.session()
    return Controller(own, View(own), "successor", lambda: cluster.now + clock_ahead_seconds)


@pytest.mark.parametrize("ahead_seconds", [HOUR, 0.0, -HOUR])
def test_an_order_in_flight_has_its_whole_time_by_the_clock_of_the_new_leader(
    cluster: Cluster, ahead_seconds: float
) -> None:
    cluster.place()
    cluster.now += ANNOUNCE_SECONDS - 1
    successor = successor_of(cluster, ahead_seconds)
    epoch = cluster.elect(successor)

    cluster.now += ANNOUNCE_SECONDS - 1
    successor.reconcile()
    (order,) = cluster.assigned()
    # The agent refuses orders of an epoch that is over.
    assert (order.instance_id, order.epoch) == ("1-0", epoch)

    cluster.now += 2
    successor.reconcile()
    assert cluster.assigned() == []


@pytest.mark.parametrize("ahead_seconds", [HOUR, -HOUR])
def test_what_serves_is_kept_by_a_leader_whose_clock_is_another(
    cluster: Cluster, ahead_seconds: float
) -> None:
    cluster.place()
    cluster.serve()
    before = cluster.assigned()
    successor = successor_of(cluster, ahead_seconds)
    cluster.elect(successor)

    for _ in range(10):
        cluster.now += 1
        successor.reconcile()
    assert cluster.assigned() == before


def test_a_pause_lasts_no_longer_by_the_clock_of_a_new_leader(cluster: Cluster) -> None:
    failure = FailureRecord(
        "f.ns", cluster.version(), "1-0", "n", 1, 1, {}, cluster.now, cluster.now + 1
    )
    cluster.store.put(failure.path, encode(failure))
    successor = successor_of(cluster, -HOUR)
    cluster.elect(successor)

    cluster.now += PAUSE_SECONDS_LAST + 1
    assert successor.reconcile()
    entry = cluster.store.get(failure.path)
    assert entry is not None
    ours = decode(FailureRecord, entry.value)
    assert ours.retry_at is not None
    assert ours.retry_at < cluster.now - HOUR


def test_a_scale_request_that_came_between_two_leaders_is_carried_out(cluster: Cluster) -> None:
    cluster.place()
    cluster.serve()
    cluster.controller.on_lost()
    cluster.deploy(replace(FUNCTION, replicas_requested=0))
    cluster.now += 1
    successor = successor_of(cluster)
    cluster.elect(successor)

    successor.reconcile()
    assert cluster.assigned() == []


def test_a_scale_request_that_was_carried_out_is_not_by_the_next_leader(cluster: Cluster) -> None:
    cluster.deploy(replace(FUNCTION, replicas_requested=0))
    cluster.controller.reconcile()
    cluster.now += 1
    cluster.place()
    successor = successor_of(cluster)
    cluster.elect(successor)

    successor.reconcile()
    assert len(cluster.assigned()) == 1
    cluster.store.delete(FUNCTION.path)
    successor.reconcile()
    assert cluster.store.list("/requests") == ()


def test_a_leader_that_could_not_read_the_store_at_first_takes_over_when_it_can(
    cluster: Cluster,
) -> None:
    cluster.place()
    own = cluster.store.session()
    successor = Controller(own, View(own), "successor", lambda: cluster.now)
    own.suspend()
    epoch = cluster.elect(successor)
    assert not successor.leading

    own.resume()
    successor.reconcile()
    assert successor.leading
    assert [order.epoch for order in cluster.assigned()] == [epoch]


def test_a_scale_request_that_came_while_the_store_was_away_is_carried_out(
    cluster: Cluster,
) -> None:
    cluster.place()
    cluster.serve()
    cluster.own.suspend()
    with pytest.raises(CoordinationLost):
        cluster.place(queued=2)
    cluster.deploy(replace(FUNCTION, replicas_requested=0))
    cluster.own.resume()

    # The call that waited counts no longer when its gateway has been silent.
    cluster.now += REPORT_SECONDS + 1
    cluster.controller.reconcile()
    assert cluster.assigned() == []


def test_a_new_leader_averages_the_load_of_what_was_deployed_before(cluster: Cluster) -> None:
    kpa = Kpa(target=2.0, utilization=1.0, window_seconds=6.0)
    averaged = replace(FUNCTION.scaling, maximum=4, kpa=kpa)
    cluster.deploy(replace(FUNCTION, scaling=averaged))
    cluster.place()
    assert len(cluster.assigned()) == 1
    successor = successor_of(cluster)
    cluster.elect(successor)

    demand = FunctionDemand(6, 0, 0.0)
    for _ in range(10):
        cluster.serve()
        successor.report(DemandReport("g", {"f.ns": demand}))
        cluster.now += 1
        successor.reconcile()
    assert len(cluster.assigned()) == 3


class StuckStore(MemoryStore):
    """Does not answer a write before it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck, self.goes_on = threading.Event(), threading.Event()

    def put(
        self,
        path: str,
        value: bytes,
        *,
        version: int | None = None,
        ephemeral: bool = False,
        fence: Fence | None = None,
    ) -> int:
        if path.startswith("/assignments"):
            self.stuck.set()
            self.goes_on.wait(10)
        return super().put(path, value, version=version, ephemeral=ephemeral, fence=fence)


def test_who_lost_the_election_says_so_at_once_although_the_store_does_not_answer() -> None:
    cluster = Cluster()
    cluster.store = cluster.own = store = StuckStore()
    cluster.view = View(store)
    cluster.controller = Controller(store, cluster.view, "me", lambda: cluster.now)
    cluster.deploy()
    cluster.join()
    cluster.elect()
    asking = threading.Thread(target=cluster.place)
    asking.start()
    assert store.stuck.wait(5)

    cluster.controller.on_lost()
    with pytest.raises(Unavailable, match="No placement leads"):
        cluster.place()
    store.goes_on.set()
    asking.join()


def test_the_leaders_clock_does_not_follow_a_wall_clock_that_is_moved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = steady_clock()
    before = clock()
    monkeypatch.setattr("time.time", lambda: before + HOUR)
    assert 0 <= clock() - before < 60
