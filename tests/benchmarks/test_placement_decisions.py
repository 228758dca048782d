"""The placement benchmark's decisions: what it times does what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

PLACEMENT = Path(__file__).resolve().parents[2] / "benchmarks" / "placement"


@pytest.fixture(autouse=True)
def import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PLACEMENT))


def test_each_situation_is_the_one_that_it_is_named_after() -> None:
    import decisions
    from fleet_of import NOW, records_of

    from stoker.placement.choice import Ask, choose
    from stoker.placement.fleet import Fleet

    shape = decisions.Shape(nodes=20, models=20, instances=80, places=8)
    fleet = Fleet(records_of(shape), NOW)
    assert len(fleet.assignments) == 80
    for function in fleet.functions.values():
        chosen = choose(fleet, Ask(function), NOW).chosen
        assert chosen is not None
        assert chosen.victims == ()
    full = Fleet(records_of(decisions.Shape(20, 20, 80, places=4)), NOW)
    assert choose(full, Ask(function), NOW).chosen is None


def test_every_figure_is_measured() -> None:
    import decisions

    shape = decisions.Shape(nodes=20, models=20, instances=80, places=8)
    for measure in (decisions.decisions, decisions.full_decisions, decisions.migrating_decisions):
        found = measure(shape, 20)
        assert 0.0 < found.p50 <= found.p99
    changed, megabytes = decisions.updates(shape, 20)
    assert changed.p50 > 0.0
    assert megabytes >= 0.0
    assert decisions.sweep_milliseconds(shape) > 0.0
