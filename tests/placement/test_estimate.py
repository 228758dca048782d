import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.placement.estimate import (
    CONTROL_SECONDS,
    PREFILL_SECONDS,
    PROCESS_SECONDS,
    REMOTE_BANDWIDTH_DEFAULT,
    ZYGOTE_SECONDS,
    MissingBytes,
    estimate,
    missing_bytes,
)
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


def resident(
    dram: int, ssd: int, ref: CheckpointRef = MODEL
) -> dict[tuple[str, str], ResidentRecord]:
    return {("n", ref.digest): ResidentRecord("n", ref.digest, dram, ssd)}


@pytest.mark.parametrize(
    ("dram", "ssd", "expected"),
    [
        (0, 0, MissingBytes(0, 2 * GB)),
        (0, 2 * GB, MissingBytes(2 * GB, 0)),
        (2 * GB, 0, MissingBytes(0, 0)),
        (2 * GB, 2 * GB, MissingBytes(0, 0)),
        (GB // 2, GB, MissingBytes(GB // 2, GB)),
        (GB, GB // 2, MissingBytes(0, GB)),
        (9 * GB, 9 * GB, MissingBytes(0, 0)),
    ],
)
def test_missing_bytes_come_from_the_nearest_tier(
    dram: int, ssd: int, expected: MissingBytes
) -> None:
    assert missing_bytes(MODEL, "n", resident(dram, ssd)) == expected


def test_a_resident_checkpoint_costs_only_the_process_and_the_prefill() -> None:
    found = estimate(CHAT, NODE, resident(2 * GB, 0), [OTHER])
    assert (found.load_seconds, found.source) == (0.0, "dram")
    assert found.seconds == pytest.approx(CONTROL_SECONDS + 0.2 + PREFILL_SECONDS)


def test_the_load_overlaps_the_start_of_the_process() -> None:
    found = estimate(CHAT, NODE, resident(0, 2 * GB))
    assert (found.load_seconds, found.source) == (pytest.approx(2.0), "ssd")
    assert found.seconds == pytest.approx(CONTROL_SECONDS + 2.0 + PREFILL_SECONDS)


def test_the_slowest_tier_on_the_path_decides() -> None:
    found = estimate(CHAT, NODE, resident(0, GB))
    assert (found.load_seconds, found.source) == (pytest.approx(10.0), "remote")


def test_a_load_waits_behind_the_loads_queued_on_the_same_tier() -> None:
    on_ssd = {**resident(0, 2 * GB), **resident(0, 3 * GB, OTHER)}
    assert estimate(CHAT, NODE, on_ssd, [OTHER]).load_seconds == pytest.approx(5.0)


def test_a_load_does_not_wait_behind_another_tier() -> None:
    assert estimate(CHAT, NODE, resident(0, 2 * GB), [OTHER]).load_seconds == pytest.approx(2.0)


def test_a_checkpoint_that_is_on_its_way_is_not_loaded_twice() -> None:
    alone = estimate(CHAT, NODE, {})
    assert estimate(CHAT, NODE, {}, [MODEL, MODEL]) == alone


def test_code_has_nothing_to_load_and_waits_for_the_zygote_only() -> None:
    cold = dataclasses.replace(NODE, zygote_ready=False, init_seconds=0.0)
    found = estimate(CODE, cold, {}, [OTHER])
    assert found.seconds == CONTROL_SECONDS + PROCESS_SECONDS + ZYGOTE_SECONDS


def test_an_unmeasured_bandwidth_takes_the_documented_default() -> None:
    unknown = dataclasses.replace(NODE, remote_bandwidth=0.0)
    assert estimate(CHAT, unknown, {}).load_seconds == 2 * GB / REMOTE_BANDWIDTH_DEFAULT


@given(st.integers(0, 3 * GB), st.integers(0, 3 * GB), st.integers(1, GB))
def test_more_resident_bytes_never_make_a_start_slower(dram: int, ssd: int, more: int) -> None:
    now = estimate(CHAT, NODE, resident(dram, ssd)).seconds
    assert estimate(CHAT, NODE, resident(dram + more, ssd)).seconds <= now + 1e-9
    assert estimate(CHAT, NODE, resident(dram, ssd + more)).seconds <= now + 1e-9
