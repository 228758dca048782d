"""What is remembered of decisions, and what is made of how they turned out."""

import dataclasses
import tracemalloc

import pytest

from harness.plans import GB, MODEL, NOW, QUEUED, function, instance, node
from stoker.placement import decisions
from stoker.placement.choice import Ask, choose
from stoker.placement.decisions import Decisions
from stoker.placement.estimate import CONTROL_SECONDS, PROCESS_SECONDS
from stoker.placement.fleet import Fleet
from stoker.placement.forecast import forecast
from stoker.placement.plan import plan
from stoker.placement.records import Assignment, ResidentRecord
from stoker.placement.why import WhyAnswer, sentences

F = function("f", MODEL)


def cluster() -> Fleet:
    """`near` has the model on its disk, `far` has to fetch it, `full` takes no more."""
    nodes = [node("near"), node("far"), node("full", instances_maximum=0)]
    return Fleet([F, *nodes, ResidentRecord("near", MODEL.digest, 0, GB)], NOW)


def start(fleet: Fleet, log: Decisions, *calls: str, number: int = 0) -> Assignment:
    made = plan(fleet, {F.key: QUEUED}, NOW, epoch=1, first_number=number)
    ((decision, assignment),) = made.decisions
    assert assignment is not None
    log.add(decision, assignment, calls)
    return assignment


def serve(fleet: Fleet, log: Decisions, made: Assignment, seconds: float) -> None:
    serving = dataclasses.replace(
        instance(made), start_seconds=seconds, process_seconds=0.3, ssd_seconds=seconds - 0.1
    )
    log.served(serving, fleet)


def test_a_call_is_told_where_it_went_and_why_nowhere_else() -> None:
    fleet, log = cluster(), Decisions()
    made = start(fleet, log, "call-1", "call-2")
    told = log.find("call-2")
    assert told is not None
    assert told == log.find(made.instance_id)
    assert (told.kind, told.node_id, told.instance_id) == ("ssd", "near", made.instance_id)
    assert told.predicted_seconds == pytest.approx(CONTROL_SECONDS + 1.0)
    assert told.actual_seconds is None
    # 1 GB at 125 MB/s from `near`, which is faster than the store.
    assert [(r.node_id, r.reason) for r in told.rejected] == [
        ("far", "slower"),
        ("full", "0 of 0 instances are in use"),
    ]
    assert told.rejected[0].seconds == pytest.approx(8.11)
    assert log.find("another") is None


def test_a_start_that_serves_is_compared_with_its_prediction_once() -> None:
    fleet, log = cluster(), Decisions()
    made = start(fleet, log, "call")
    for _ in range(2):
        serve(fleet, log, made, 2.0)
    told = log.find("call")
    assert told is not None
    assert told.actual_seconds == pytest.approx(CONTROL_SECONDS + 2.0)
    stages = {stage.stage: (stage.predicted, stage.actual) for stage in told.stages}
    assert stages == {
        "process": (PROCESS_SECONDS, 0.3),
        "load": (pytest.approx(1.0), pytest.approx(1.9)),
    }
    error = log.errors()["ssd"]
    assert (error.starts, error.median) == (1, pytest.approx(1.0 / 2.01))


def test_what_a_start_took_is_predicted_for_the_next() -> None:
    fleet, log = cluster(), Decisions()
    serve(fleet, log, start(fleet, log), 2.0)
    row = fleet.rows.ids.index("near")
    assert float(forecast(fleet, F, NOW).process[row]) == 0.3
    fleet.drop(fleet.assignments["1-0"], NOW)
    assert float(forecast(fleet, F, NOW).ssd[row]) == pytest.approx(2.0, rel=0.06)


def test_a_shortage_is_told_as_well() -> None:
    fleet, log = Fleet([F, node(sockets=0)], NOW), Decisions()
    made = plan(fleet, {F.key: QUEUED}, NOW, epoch=1)
    ((decision, assignment),) = made.decisions
    log.add(decision, assignment, ["call"])
    told = log.find("call")
    assert told is not None
    assert (told.kind, told.rejected[0].reason) == ("", "no listening socket is ready")
    assert "no node had room" in next(sentences(told))


def test_the_oldest_decisions_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "NODES_REMEMBERED", 30)
    fleet, log = cluster(), Decisions()
    decision = choose(fleet, Ask(F), NOW)
    for number in range(50):
        log.add(decision, None, [f"call-{number}"])
    remembered = [number for number in range(50) if log.find(f"call-{number}")]
    assert remembered == list(range(40, 50))


def test_names_are_bounded_and_the_first_decision_for_a_call_stays() -> None:
    fleet, log = cluster(), Decisions()
    first, second = choose(fleet, Ask(F), NOW), choose(fleet, Ask(F), NOW + 1.0)
    log.add(first, None, [f"call-{number}" for number in range(1000)])
    log.add(second, None, ["call-0"])
    told = log.find("call-0")
    assert told is not None
    assert told.decided_at == NOW
    assert log.find(f"call-{decisions.NAMES_MAXIMUM - 1}")
    assert log.find(f"call-{decisions.NAMES_MAXIMUM}") is None


def test_a_thousand_nodes_cost_a_decision_some_kilobytes() -> None:
    fleet = Fleet([F, *(node(f"n{number}") for number in range(1000))], NOW)
    log = Decisions()
    log.add(choose(fleet, Ask(F), NOW), None)
    tracemalloc.start()
    for _ in range(20):
        log.add(choose(fleet, Ask(F), NOW), None)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held / 20 < 60_000


def test_the_words_name_node_times_and_reasons() -> None:
    fleet, log = cluster(), Decisions()
    serve(fleet, log, start(fleet, log, "call"), 1.0)
    told = log.find("call")
    assert isinstance(told, WhyAnswer)
    text = "\n".join(sentences(told))
    assert "f.ns went to node near as instance 1-0" in text
    assert "its weights were on the disk there" in text
    assert "Predicted 1.010 s until it serves, took 1.010 s: off by 0.0%." in text
    assert "far: 8.110 s, slower" in text
    assert "full: " in text
    assert "Of 1 starts from ssd" in text
