"""Instances that fail to start: pauses, the end of trying, and what ends it."""

import dataclasses

import pytest

from harness.cluster import FUNCTION, Cluster
from stoker.placement.errors import (
    CheckpointMissing,
    CrashLoop,
    InstanceLost,
    StartFailed,
    StokerError,
)
from stoker.placement.failures import SETTLED_SECONDS
from stoker.placement.records import FunctionRecord, Scaling


def fail(cluster: Cluster, error: StokerError | None) -> None:
    cluster.announce(cluster.assigned()[-1], "failed", error)


def crash(cluster: Cluster, times: int) -> None:
    """Start it and let it fail, each time as soon as it may be tried again."""
    for number in range(times):
        cluster.place()
        fail(cluster, StartFailed(f"It ended with exit code {number}."))
        cluster.controller.reconcile()
        cluster.now += 2.0**number


def test_the_client_sees_why_the_start_failed(cluster: Cluster) -> None:
    cluster.place()
    fail(cluster, CheckpointMissing("There is no such prefix.", "Upload it."))
    with pytest.raises(CheckpointMissing, match="no such prefix") as caught:
        cluster.place()
    assert caught.value.retry_after_seconds == 1.0
    assert cluster.assigned() == []


def test_a_failure_without_a_reason_is_a_failed_start(cluster: Cluster) -> None:
    cluster.place()
    fail(cluster, None)
    with pytest.raises(StartFailed):
        cluster.place()


def test_what_served_and_died_is_started_again_at_once(cluster: Cluster) -> None:
    assert cluster.place() == ["1-0"]
    cluster.serve()
    fail(cluster, InstanceLost("It died of signal 9."))
    assert cluster.place() == ["1-1"]


def test_after_a_pause_it_is_tried_again_on_another_node(cluster: Cluster) -> None:
    cluster.place()
    fail(cluster, None)
    cluster.controller.reconcile()
    cluster.join("z")
    cluster.now += 1.0
    assert cluster.place() == ["1-1"]
    assert cluster.assigned()[0].node_id == "z"


def test_the_pause_doubles_and_a_new_generation_ends_it(cluster: Cluster) -> None:
    cluster.join(sockets=16)
    for pause in (1.0, 2.0, 4.0, 8.0):
        cluster.place()
        fail(cluster, None)
        with pytest.raises(StartFailed) as caught:
            cluster.place()
        assert caught.value.retry_after_seconds == pause
        cluster.now += pause
    cluster.place()
    fail(cluster, None)
    cluster.deploy(dataclasses.replace(FUNCTION, generation=2))
    assert len(cluster.place()) == 1


def test_after_five_failures_nothing_starts_any_more_and_clients_hear_why(cluster: Cluster) -> None:
    cluster.join(sockets=16)
    warm = dataclasses.replace(FUNCTION, scaling=Scaling(minimum=1, maximum=2))
    cluster.deploy(warm)
    crash(cluster, 5)
    cluster.now += 1e6
    cluster.controller.reconcile()
    with pytest.raises(CrashLoop, match=r"5 times in a row.*exit code 4") as caught:
        cluster.place()
    assert caught.value.retry_after_seconds is None
    assert cluster.assigned() == []


@pytest.mark.parametrize(
    "again",
    [
        dataclasses.replace(FUNCTION, generation=2),
        dataclasses.replace(FUNCTION, replicas_requested=1),
    ],
)
def test_a_deploy_or_a_scale_request_gives_it_five_tries_more(
    cluster: Cluster, again: FunctionRecord
) -> None:
    cluster.join(sockets=16)
    crash(cluster, 5)
    cluster.deploy(again)
    cluster.controller.reconcile()
    assert cluster.store.list("/failures") == ()
    crash(cluster, 4)
    assert len(cluster.place()) == 1


def test_failures_are_written_once_each_and_outlive_the_leader(cluster: Cluster) -> None:
    cluster.join(sockets=16)
    crash(cluster, 5)
    (entry,) = cluster.store.list("/failures")
    for _ in range(3):
        cluster.controller.reconcile()
    assert cluster.store.list("/failures") == (entry,)
    cluster.controller.on_lost()
    cluster.elect()
    with pytest.raises(CrashLoop):
        cluster.place()
    cluster.store.delete(FUNCTION.path)
    cluster.controller.reconcile()
    assert cluster.store.list("/failures") == ()


def test_an_instance_that_lasts_ends_the_count_and_one_that_served_does_too(
    cluster: Cluster,
) -> None:
    cluster.join(sockets=16)
    crash(cluster, 4)
    cluster.place()
    cluster.serve()
    cluster.controller.reconcile()
    assert cluster.store.list("/failures") != ()
    cluster.now += SETTLED_SECONDS
    cluster.controller.reconcile()
    assert cluster.store.list("/failures") == ()
    fail(cluster, InstanceLost("It died of signal 9."))
    crash(cluster, 4)
    cluster.place()
    cluster.serve()
    fail(cluster, InstanceLost("It died of signal 9."))
    assert len(cluster.place()) == 1
    assert cluster.store.list("/failures") == ()


def test_a_failure_does_not_hide_the_instances_that_serve(cluster: Cluster) -> None:
    cluster.place(queued=2)
    first, second = cluster.assigned()
    cluster.announce(first, "serving")
    cluster.announce(second, "failed")
    assert cluster.place(queued=2)[0] == "1-0"
