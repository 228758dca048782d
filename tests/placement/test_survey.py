"""What each node lacks, in words with numbers."""

from harness.plans import GB, NOW, assignment, function, node
from stoker.placement.choice import Ask, choose
from stoker.placement.fleet import Fleet
from stoker.placement.records import CheckpointRef, DeviceNeed, FunctionRecord, NodeRecord

MODEL = CheckpointRef("s3://b/m", "a" * 64, 4 * GB, packed=True)


def test_a_tensor_parallel_group_takes_devices_of_one_node() -> None:
    f = function("f", MODEL, devices=(DeviceNeed("gpu", 2),))
    common = {"device_kind": "gpu", "dram_bytes": 64 * GB}
    nodes = [node(name, device_count=count, **common) for name, count in (("a", 1), ("b", 2))]
    taken = assignment("1-0", f, "b", devices=(0,))
    fleet = Fleet([f, *nodes], NOW)
    chosen = choose(fleet, Ask(f), NOW).chosen
    assert chosen is not None
    assert (chosen.node_id, chosen.device_count) == ("b", 2)
    fleet.put(taken, NOW)
    made = choose(fleet, Ask(f), NOW)
    assert made.chosen is None
    reasons = dict(made.survey.refusals())
    assert reasons == {
        "a": "1 of its 1 devices are free, 2 are needed",
        "b": "1 of its 2 devices are free, 2 are needed",
    }


def reasons_for(f: FunctionRecord, *nodes: NodeRecord) -> dict[str, str]:
    made = choose(Fleet([f, *nodes], NOW), Ask(f), NOW)
    assert made.chosen is None
    assert not made.survey.able.any()
    return dict(made.survey.refusals())


def test_who_asks_for_devices_that_nobody_has_is_told_what_each_node_has() -> None:
    f = function("f", devices=(DeviceNeed("h100", 1), DeviceNeed("a100", 4)))
    asked = "and h100:1 or a100:4 is asked for"
    assert reasons_for(
        f,
        node("a"),
        node("b", device_kind="a10", device_count=2),
        node("c", device_kind="a100", device_count=2),
    ) == {
        "a": f"it has no devices, {asked}",
        "b": f"it has 2 of kind a10, {asked}",
        "c": "2 of its 2 devices are free, 4 are needed",
    }


def test_weights_must_fit_into_the_devices_that_share_them() -> None:
    common = {"device_count": 4, "device_bytes": GB, "dram_bytes": 64 * GB}
    small = node("a", device_kind="a10", **common)
    assert reasons_for(function("f", MODEL, devices=(DeviceNeed("a10", 2),)), small) == {
        "a": "each of its devices has 1000000000 B, and its part of the weights is 2000000000 B"
    }
    for needs, taken in (
        ((DeviceNeed("a10", 4),), 4),
        ((DeviceNeed("a10", 2), DeviceNeed("cpu", 0)), 0),
    ):
        f = function("f", MODEL, devices=needs)
        chosen = choose(Fleet([f, small], NOW), Ask(f), NOW).chosen
        assert chosen is not None
        assert chosen.device_count == taken
