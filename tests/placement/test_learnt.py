import dataclasses
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.plans import GB, NOW, assignment, function, node
from stoker.placement.fleet import Fleet
from stoker.placement.forecast import forecast
from stoker.placement.learnt import PARKED, Line
from stoker.placement.records import CheckpointRef, ResidentRecord

MODELS = [
    CheckpointRef(f"s3://b/{n}", f"{n:064x}", size, packed=True)
    for n, size in enumerate((GB // 4, GB, 3 * GB, 7 * GB))
]


@given(st.floats(0.0, 1.0), st.floats(0.1 * GB, 10.0 * GB))
def test_a_line_finds_base_and_bandwidth_from_loads_of_several_sizes(
    base: float, bandwidth: float
) -> None:
    line = Line()
    for ref in MODELS * 3:
        line.add(ref.weight_bytes, base + ref.weight_bytes / bandwidth)
    found_base, found_bandwidth = line.fit(1.0 * GB)
    for ref in MODELS[1:]:
        expected = base + ref.weight_bytes / bandwidth
        assert found_base + ref.weight_bytes / found_bandwidth == pytest.approx(expected, rel=0.06)


def test_before_the_first_load_a_line_says_what_the_node_says() -> None:
    assert Line().fit(2.0 * GB) == (0.0, pytest.approx(2.0 * GB))


@given(st.integers(1, 10 * GB), st.floats(0.01, 100.0))
def test_loads_of_one_size_are_predicted_as_they_were(byte_count: int, seconds: float) -> None:
    line = Line()
    for _ in range(5):
        line.add(byte_count, seconds)
    base, bandwidth = line.fit(1.0 * GB)
    assert base + byte_count / bandwidth == pytest.approx(seconds, rel=0.06)


def test_after_ten_noisy_loads_half_are_predicted_within_5_percent() -> None:
    """The disk reads at 0.8 of what the node says, behind 80 ms of opening; times vary by 3 %."""
    chance = random.Random(4)
    here = node(dram_bytes=64 * GB, ssd_bandwidth=1.0 * GB, init_seconds=0.01)
    owners = [function(f"f{n}", ref) for n, ref in enumerate(MODELS)]
    held = [ResidentRecord("n", ref.digest, 0, ref.weight_bytes) for ref in MODELS]
    fleet = Fleet([here, *owners, *held], NOW)
    errors = []
    for number in range(40):
        ref = chance.choice(MODELS)
        owner = next(o for o in owners if o.checkpoint is ref)
        predicted = float(forecast(fleet, owner, NOW).ssd[0])
        actual = (0.08 + ref.weight_bytes / (0.8 * GB)) * chance.uniform(0.97, 1.03)
        fleet.learnt.note_load(here, "ssd", ref.weight_bytes, actual)
        if number >= 10:
            errors.append(abs(predicted - actual) / actual)
    errors.sort()
    assert statistics.median(errors) <= 0.05
    assert errors[int(0.95 * len(errors))] <= 0.20


def test_a_load_behind_others_takes_the_learnt_factor_of_what_the_queue_says() -> None:
    here = node(dram_bytes=64 * GB, ssd_bandwidth=1.0 * GB)
    first, second = function("first", MODELS[1]), function("second", MODELS[2])
    held = [ResidentRecord("n", ref.digest, 0, ref.weight_bytes) for ref in MODELS]
    fleet = Fleet([here, first, second, *held, assignment("1-0", first)], NOW)
    assert float(forecast(fleet, second, NOW).ssd[0]) == pytest.approx(4.0)
    for _ in range(20):
        expected = float(forecast(fleet, second, NOW).ssd[0])
        fleet.learnt.note_contended_load(here, 3.0 / expected)
    assert float(forecast(fleet, second, NOW).ssd[0]) == pytest.approx(3.0, rel=0.01)
    # Without company it takes what it took.
    fleet.drop(fleet.assignments["1-0"], NOW)
    assert float(forecast(fleet, second, NOW).ssd[0]) == pytest.approx(3.0)


def test_a_process_takes_what_the_functions_last_ones_took() -> None:
    f, g = function("f"), function("g")
    nodes = [node("a"), node("b"), node("cold", zygote_ready=False)]
    fleet = Fleet([f, g, *nodes], NOW)
    before = forecast(fleet, g, NOW).process.tolist()
    fleet.learnt.note_process(f.key, "a", 0, 0.2)
    assert forecast(fleet, f, NOW).process.tolist() == pytest.approx([0.2, 0.2, 4.2])
    fleet.learnt.note_process(f.key, "b", 0, 1.0)
    assert forecast(fleet, f, NOW).process.tolist() == pytest.approx([0.2, 1.0, 4.6])
    assert forecast(fleet, g, NOW).process.tolist() == before


def test_a_process_beside_weights_from_afar_is_told_from_one_beside_weights_in_memory() -> None:
    f = function("f", MODELS[1])
    fleet = Fleet([f, node("a"), node("b"), ResidentRecord("a", MODELS[1].digest, GB, 0)], NOW)
    for tier, seconds in ((0, 0.05), (2, 0.4), (0, 0.05), (2, 0.4), (0, 9.0)):
        fleet.learnt.note_process(f.key, "a", tier, seconds)
    assert forecast(fleet, f, NOW).process.tolist() == pytest.approx([0.05, 0.4])


def test_where_a_process_stands_by_a_start_takes_what_such_ones_took() -> None:
    f = function("f")
    here, there = node("a", parked=(f.key,)), node("b")
    fleet = Fleet([f, here, there], NOW)
    for seconds in (0.9, 1.0, 1.1):
        fleet.learnt.note_process(f.key, "a", 0, seconds)
    # None was ever seen: as long as the others.
    assert forecast(fleet, f, NOW).process.tolist() == pytest.approx([1.0, 1.0])
    # On another node one was: that tells more than its own that did not stand by.
    fleet.learnt.note_process(f.key, "b", PARKED, 0.02)
    assert forecast(fleet, f, NOW).process.tolist() == pytest.approx([0.02, 1.0])
    fleet.learnt.note_process(f.key, "b", 0, 2.0)
    assert forecast(fleet, f, NOW).process.tolist() == pytest.approx([0.02, 2.0])
    fleet.learnt.note_process(f.key, "a", PARKED, 0.05)
    assert forecast(fleet, f, NOW).process.tolist() == pytest.approx([0.05, 2.0])
    # It was taken by a start.
    fleet.put(dataclasses.replace(here, parked=()), NOW)
    assert forecast(fleet, f, NOW).process.tolist() == pytest.approx([1.0, 2.0])


def test_what_was_learnt_of_a_node_or_a_function_goes_with_it() -> None:
    f, here = function("f", MODELS[1]), node(ssd_bandwidth=1.0 * GB)
    held = ResidentRecord("n", MODELS[1].digest, 0, GB)
    fleet = Fleet([f, here, held], NOW)
    fresh = forecast(fleet, f, NOW).seconds.tolist()
    fleet.learnt.note_load(here, "ssd", GB, 5.0)
    fleet.learnt.note_process(f.key, "n", 1, 7.0)
    assert forecast(fleet, f, NOW).seconds.tolist() != fresh
    # Its record changes with each start; what was learnt stays.
    fleet.put(dataclasses.replace(here, init_seconds=0.3), NOW)
    assert float(forecast(fleet, f, NOW).ssd[0]) == pytest.approx(5.0, rel=0.06)
    fleet.drop(here, NOW)
    fleet.drop(f, NOW)
    fleet.put(here, NOW)
    fleet.put(f, NOW)
    assert forecast(fleet, f, NOW).seconds.tolist() == fresh
