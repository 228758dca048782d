import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.plans import NOW, assignment, instance
from stoker.placement.estimate import (
    CONTROL_SECONDS,
    PREFILL_SECONDS,
    PROCESS_SECONDS,
    REMOTE_BANDWIDTH_DEFAULT,
    ZYGOTE_SECONDS,
    Stages,
    missing_bytes,
)
from stoker.placement.fleet import Fleet
from stoker.placement.forecast import Forecast, forecast
from stoker.placement.records import CheckpointRef, FunctionRecord, NodeRecord, ResidentRecord

GB = 1_000_000_000
MODEL = CheckpointRef("s3://b/m", "a" * 64, 2 * GB, packed=True)
OTHER = CheckpointRef("s3://b/o", "b" * 64, 3 * GB, packed=True)
NODE = NodeRecord(
    node_id="n",
    agent_address="",
    cores=4,
    dram_bytes=8 * GB,
    ssd_bytes=8 * GB,
    instances_maximum=4,
    remote_bandwidth=0.1 * GB,
    ssd_bandwidth=1.0 * GB,
    init_seconds=0.2,
    zygote_ready=True,
)
CHAT = FunctionRecord("chat", "ns", "img", task="chat", checkpoint=MODEL)
CODE = FunctionRecord("code", "ns", "img")


def resident(dram: int, ssd: int, ref: CheckpointRef = MODEL, node: str = "n") -> ResidentRecord:
    return ResidentRecord(node, ref.digest, dram, ssd)


def fleet_of(
    nodes: list[NodeRecord],
    residents: list[ResidentRecord],
    loading: list[CheckpointRef] | None = None,
) -> Fleet:
    """Nodes on the first of which something loads each of `loading`."""
    fleet = Fleet([CHAT, CODE, *nodes, *residents], NOW)
    for number, ref in enumerate(loading or []):
        owner = FunctionRecord(f"loads-{number}", "ns", "img", checkpoint=ref)
        fleet.put(owner, NOW)
        fleet.put(assignment(f"1-{number}", owner, nodes[0].node_id), NOW)
    return fleet


def estimate(
    function: FunctionRecord,
    node: NodeRecord,
    residents: list[ResidentRecord],
    loading: list[CheckpointRef] | None = None,
) -> tuple[Stages, float]:
    predicted = forecast(fleet_of([node], residents, loading), function, NOW)
    return predicted.stages(0), float(predicted.seconds[0])


@pytest.mark.parametrize(
    ("dram", "ssd", "expected"),
    [
        (0, 0, (0, 2 * GB)),
        (0, 2 * GB, (2 * GB, 0)),
        (2 * GB, 0, (0, 0)),
        (2 * GB, 2 * GB, (0, 0)),
        (GB // 2, GB, (GB // 2, GB)),
        (GB, GB // 2, (0, GB)),
        (9 * GB, 9 * GB, (0, 0)),
    ],
)
def test_missing_bytes_come_from_the_nearest_tier(
    dram: int, ssd: int, expected: tuple[int, int]
) -> None:
    assert missing_bytes(MODEL.weight_bytes, dram, ssd) == expected


def test_a_resident_checkpoint_costs_only_the_process_and_the_prefill() -> None:
    found, seconds = estimate(CHAT, NODE, [resident(2 * GB, 0)], [OTHER])
    assert (found.ssd, found.net, found.source) == (0.0, 0.0, "dram")
    assert seconds == pytest.approx(CONTROL_SECONDS + 0.2 + PREFILL_SECONDS)


def test_the_load_overlaps_the_start_of_the_process() -> None:
    found, seconds = estimate(CHAT, NODE, [resident(0, 2 * GB)])
    assert (found.ssd, found.source) == (pytest.approx(2.0), "ssd")
    assert seconds == pytest.approx(CONTROL_SECONDS + 2.0 + PREFILL_SECONDS)


def test_the_slowest_tier_on_the_path_decides() -> None:
    found, seconds = estimate(CHAT, NODE, [resident(0, GB)])
    assert (found.ssd, found.net, found.source) == (1.0, pytest.approx(10.0), "remote")
    assert seconds == pytest.approx(CONTROL_SECONDS + 10.0 + PREFILL_SECONDS)


def test_a_load_waits_behind_the_loads_queued_on_the_same_tier() -> None:
    on_ssd = [resident(0, 2 * GB), resident(0, 3 * GB, OTHER)]
    assert estimate(CHAT, NODE, on_ssd, [OTHER])[0].ssd == pytest.approx(5.0)


def test_a_load_does_not_wait_behind_another_tier() -> None:
    assert estimate(CHAT, NODE, [resident(0, 2 * GB)], [OTHER])[0].ssd == pytest.approx(2.0)


def test_a_checkpoint_that_is_on_its_way_is_not_loaded_twice() -> None:
    alone = estimate(CHAT, NODE, [])
    assert estimate(CHAT, NODE, [], [MODEL, MODEL]) == alone


def test_what_is_queued_drains_while_time_passes() -> None:
    on_ssd = [resident(0, 2 * GB), resident(0, 3 * GB, OTHER)]
    fleet = fleet_of([NODE], on_ssd, [OTHER])
    later = [float(forecast(fleet, CHAT, NOW + age).ssd[0]) for age in (0.0, 1.0, 3.0, 9.0)]
    assert later == pytest.approx([5.0, 4.0, 2.0, 2.0])


def test_what_a_node_reports_of_a_load_replaces_what_was_reckoned() -> None:
    on_ssd = [resident(0, 2 * GB), resident(0, 3 * GB, OTHER)]
    fleet = fleet_of([NODE], on_ssd, [OTHER])
    fleet.put(resident(GB, 3 * GB, OTHER), NOW + 3.0)
    assert float(forecast(fleet, CHAT, NOW + 3.0).ssd[0]) == pytest.approx(4.0)


def test_a_start_that_serves_leaves_the_queue() -> None:
    on_ssd = [resident(0, 2 * GB), resident(0, 3 * GB, OTHER)]
    fleet = fleet_of([NODE], on_ssd, [OTHER])
    fleet.put(instance(fleet.assignments["1-0"]), NOW)
    assert float(forecast(fleet, CHAT, NOW).ssd[0]) == pytest.approx(2.0)


PEER = dataclasses.replace(NODE, node_id="p")


def both(residents: list[ResidentRecord], **fields: float) -> Forecast:
    nodes = [dataclasses.replace(node, **fields) for node in (NODE, PEER)]
    return forecast(fleet_of(nodes, residents), CHAT, NOW)


def test_a_peer_that_holds_all_of_it_sends_it_if_that_is_faster_than_the_store() -> None:
    held = [resident(2 * GB, 0, node="p")]
    fast = both(held, peer_bandwidth=0.5 * GB).stages(0)
    assert (fast.net, fast.source) == (pytest.approx(4.0), "peer")
    slow = both(held, peer_bandwidth=0.05 * GB).stages(0)
    assert (slow.net, slow.source) == (pytest.approx(20.0), "remote")


def test_a_peer_is_no_faster_than_its_disk_and_one_with_a_part_sends_nothing() -> None:
    on_disk = both([resident(0, 2 * GB, node="p")], peer_bandwidth=4.0 * GB).stages(0)
    assert (on_disk.net, on_disk.source) == (pytest.approx(2.0), "peer")
    part = both([resident(GB, 0, node="p")], peer_bandwidth=4.0 * GB).stages(0)
    assert (part.net, part.source) == (pytest.approx(20.0), "remote")


def test_a_peer_that_already_sends_is_waited_for() -> None:
    nodes = [dataclasses.replace(node, peer_bandwidth=1.0 * GB) for node in (NODE, PEER)]
    third = dataclasses.replace(nodes[0], node_id="q")
    held = [resident(2 * GB, 0, node="p"), resident(3 * GB, 0, OTHER, node="p")]
    fleet = fleet_of([*nodes, third], held)
    owner = FunctionRecord("loads", "ns", "img", checkpoint=OTHER)
    fleet.put(owner, NOW)
    fleet.put(assignment("1-0", owner, "q", source="p"), NOW)
    row = fleet.rows.ids.index("n")
    assert float(forecast(fleet, CHAT, NOW).net[row]) == pytest.approx(5.0)


def test_code_has_nothing_to_load_and_waits_for_the_zygote_only() -> None:
    cold = dataclasses.replace(NODE, zygote_ready=False, init_seconds=0.0)
    _, seconds = estimate(CODE, cold, [], [OTHER])
    assert seconds == CONTROL_SECONDS + PROCESS_SECONDS + ZYGOTE_SECONDS


def test_an_unmeasured_bandwidth_takes_the_documented_default() -> None:
    unknown = dataclasses.replace(NODE, remote_bandwidth=0.0)
    assert estimate(CHAT, unknown, [])[0].net == 2 * GB / REMOTE_BANDWIDTH_DEFAULT


def test_serverlessllm_takes_the_whole_checkpoint_over_the_slowest_link_behind_its_queue() -> None:
    on_ssd = [resident(0, 2 * GB), resident(0, 3 * GB, OTHER)]
    found = forecast(fleet_of([NODE], on_ssd, [OTHER]), CHAT, NOW, overlapped=False, peers=False)
    assert float(found.seconds[0]) == pytest.approx(CONTROL_SECONDS + 3.0 + 2.0 + PREFILL_SECONDS)


@given(st.integers(0, 3 * GB), st.integers(0, 3 * GB), st.integers(1, GB))
def test_more_bytes_in_memory_never_make_a_start_slower(dram: int, ssd: int, more: int) -> None:
    _, now = estimate(CHAT, NODE, [resident(dram, ssd)])
    assert estimate(CHAT, NODE, [resident(dram + more, ssd)])[1] <= now + 1e-9


@given(st.integers(0, 3 * GB), st.integers(0, 3 * GB), st.integers(1, GB))
def test_more_bytes_on_the_disk_make_a_start_no_slower_than_the_disk_is(
    dram: int, ssd: int, more: int
) -> None:
    """What lies there is read there, also where a source beside it would be done sooner."""
    _, now = estimate(CHAT, NODE, [resident(dram, ssd)])
    _, whole = estimate(CHAT, NODE, [resident(dram, 3 * GB)])
    assert estimate(CHAT, NODE, [resident(dram, ssd + more)])[1] <= max(now, whole) + 1e-9
