"""The leader's orders to bring checkpoints before anybody calls them."""

from __future__ import annotations

import dataclasses

import pytest

from harness.cluster import EPOCH_PATH, FUNCTION, Cluster
from stoker.placement.controller import Controller
from stoker.placement.errors import Unavailable
from stoker.placement.records import CheckpointRef, Prefetch, ResidentRecord, decode, encode

MODEL = CheckpointRef("s3://b/m", "a" * 64, 10**8, packed=True)
CHAT = dataclasses.replace(FUNCTION, checkpoint=MODEL)


@pytest.fixture
def cluster() -> Cluster:
    """With a node that has the model of a deployed function on its disk."""
    made = Cluster()
    made.join()
    made.deploy(CHAT)
    hold(made, 0)
    made.elect()
    return made


def hold(cluster: Cluster, dram_bytes: int) -> None:
    resident = ResidentRecord("n", MODEL.digest, dram_bytes, MODEL.weight_bytes)
    cluster.store.put(resident.path, encode(resident))


def order(cluster: Cluster, node_id: str = "n") -> Prefetch | None:
    entry = cluster.store.get(f"/prefetches/{node_id}/order")
    return None if entry is None else decode(Prefetch, entry.value)


def test_what_was_deployed_and_never_called_is_ordered_until_it_is_in_memory(
    cluster: Cluster,
) -> None:
    cluster.controller.reconcile()
    assert order(cluster) == Prefetch("n", 1, (MODEL,))
    hold(cluster, MODEL.weight_bytes // 2)
    cluster.controller.reconcile()
    assert order(cluster) == Prefetch("n", 1, (MODEL,))
    hold(cluster, MODEL.weight_bytes)
    cluster.controller.reconcile()
    assert order(cluster) == Prefetch("n", 1, ())


def test_an_order_that_holds_is_not_written_again(cluster: Cluster) -> None:
    cluster.controller.reconcile()
    before = cluster.store.get("/prefetches/n/order")
    cluster.controller.reconcile()
    assert cluster.store.get("/prefetches/n/order") == before


def test_what_no_function_has_any_more_is_not_ordered_any_longer(cluster: Cluster) -> None:
    cluster.controller.reconcile()
    cluster.store.delete(CHAT.path)
    cluster.controller.reconcile()
    assert order(cluster) == Prefetch("n", 1, ())


def test_the_order_of_a_node_that_is_gone_goes_too(cluster: Cluster) -> None:
    cluster.controller.reconcile()
    cluster.store.delete("/nodes/n")
    cluster.controller.reconcile()
    assert order(cluster) is None


def test_a_leader_whose_time_is_over_orders_nothing(cluster: Cluster) -> None:
    cluster.store.put(EPOCH_PATH, b"another leader")
    with pytest.raises(Unavailable):
        cluster.controller.reconcile()
    assert order(cluster) is None
    assert not cluster.controller.leading


def test_nothing_is_ordered_where_it_is_switched_off() -> None:
    cluster = Cluster()
    cluster.controller = Controller(
        cluster.own, cluster.view, "me", lambda: cluster.now, prefetches=False
    )
    cluster.join()
    cluster.deploy(CHAT)
    hold(cluster, 0)
    cluster.elect()
    cluster.controller.reconcile()
    assert order(cluster) is None
