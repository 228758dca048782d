import dataclasses

import pytest

from stoker.placement.records import CheckpointRef, NodeRecord
from stoker.placement.simulate_world import Link, Pool, World

NODE = NodeRecord(
    "a",
    "",
    0,
    dram_bytes=250,
    ssd_bytes=1000,
    instances_maximum=4,
    remote_bandwidth=1.0,
    peer_bandwidth=2.0,
    ssd_bandwidth=10.0,
    device_bandwidth=50.0,
    device_kind="gpu",
    device_count=2,
)
ONE = CheckpointRef("", "one", 100, packed=True)
TWO = CheckpointRef("", "two", 100, packed=True)
THREE = CheckpointRef("", "three", 100, packed=True)


def test_a_link_serves_one_after_the_other() -> None:
    link = Link(10.0)
    assert [link.pass_bytes(20, 0.0), link.pass_bytes(20, 1.0), link.pass_bytes(5, 9.0)] == [
        2.0,
        4.0,
        9.5,
    ]


def test_the_nearest_tier_is_read_and_the_next_load_finds_memory() -> None:
    world = World([NODE])
    node = world.nodes["a"]
    node.keep_on_ssd("one", 100)
    first = world.fetch(node, ONE, 0.0)
    assert (first.tier, first.begins_at, first.ends_at) == ("ssd", 0.0, 10.0)
    assert world.fetch(node, ONE, 4.0) == first  # on its way already
    assert world.fetch(node, ONE, 10.0).tier == "dram"
    afar = world.fetch(node, TWO, 0.0)
    assert (afar.tier, afar.ends_at) == ("remote", 100.0)
    assert node.resident("two").ssd_bytes == 100


def test_a_peer_sends_what_it_holds_over_its_own_link() -> None:
    other = dataclasses.replace(NODE, node_id="b", remote_bandwidth=4.0)
    world = World([NODE, other])
    a, b = world.nodes["a"], world.nodes["b"]
    a.keep_on_ssd("one", 100)
    assert world.fetch(b, ONE, 0.0, source="a").ends_at == 50.0  # what it sends per second
    assert world.fetch(b, TWO, 0.0, source="a").tier == "remote"


def test_devices_copy_side_by_side_what_flows_and_wait_for_their_place() -> None:
    world = World([NODE])
    node = world.nodes["a"]
    node.keep_on_ssd("one", 100)
    fetched = world.fetch(node, ONE, 0.0)
    assert node.copy_to_devices((0, 1), 100, fetched, 0.0) == 10.0
    assert node.copy_to_devices((0,), 100, world.fetch(node, ONE, 20.0), 25.0) == 27.0


def test_memory_gives_up_what_is_longest_unused_and_never_what_is_used() -> None:
    pool = Pool(250)
    pool.use("one")
    assert pool.add("one", 100) == []
    assert pool.add("two", 100) == []
    assert pool.add("three", 100) == ["two"]
    pool.use("three")
    assert pool.add("two", 100) == []
    assert "two" not in pool
    pool.leave("one")
    assert pool.add("two", 100) == ["one"]
    assert pool.used_bytes == 200


def test_a_node_that_fails_keeps_its_disk_only() -> None:
    world = World([NODE])
    node = world.nodes["a"]
    node.keep_on_ssd("one", 100)
    world.fetch(node, ONE, 0.0)
    assert node.fail() == ["one"]
    assert not node.up
    assert node.resident("one").dram_bytes == 0
    assert world.fetch(node, ONE, 3.0).ends_at == 13.0


def test_a_full_disk_takes_no_more() -> None:
    node = World([dataclasses.replace(NODE, ssd_bytes=150)]).nodes["a"]
    assert node.keep_on_ssd("one", 100)
    assert not node.keep_on_ssd("two", 100)
    assert node.ssd_used_bytes == pytest.approx(100)
