"""The keep-alive benchmark: its workload is the documented one, and its figures repeat."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

KEEPALIVE = Path(__file__).resolve().parents[2] / "benchmarks" / "keepalive"
DAY = 86400.0


@pytest.fixture(autouse=True)
def import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(KEEPALIVE))


def run(output: Path, *arguments: str) -> dict[str, Any]:
    ran = subprocess.run(
        [
            *(sys.executable, str(KEEPALIVE / "run.py"), "--output", str(output)),
            *("--days", "0.5", "--seeds", "5", "--memory", "0.3", *arguments),
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    last: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return last


def test_the_same_arguments_give_the_same_figures(tmp_path: Path) -> None:
    first = run(tmp_path / "first.json")
    kept = json.loads((tmp_path / "first.json").read_text())

    assert first["benchmark"] == "keepalive"
    assert run(tmp_path / "second.json") == first
    assert kept["figures"] == first["figures"]
    rows = kept["medians"]["0.3"]
    capacity = rows.pop("capacity")["bytes"]
    assert all(0 < row["peak_bytes"] <= capacity for row in rows.values())


def test_a_recorded_trace_sets_when_requests_come(tmp_path: Path) -> None:
    """Its clients are busy in the first hour alone."""
    trace = tmp_path / "rates.csv.gz"
    with gzip.open(trace, "wt") as lines:
        lines.write("model,client,t_s,rate_rps,cv,dist,p1,p2\n")
        for client in range(12):
            for window in range(6):
                lines.write(f"m,{client},{window * 600},{client + 1},1.0,G,1,1\n")
        lines.write("m,0,86400,1.0,1.0,G,1,1\n")

    import traces

    loads = traces.recorded(trace, 10, 0.5, seed=1)
    found = traces.requests([f"f{n}" for n in range(10)], loads, 10.0, seed=1)

    assert len(loads) == 10
    assert sum(loads[0]) >= sum(loads[-1])
    assert found
    assert max(request.at for request in found) < 3600.0


def test_the_synthetic_requests_are_as_documented() -> None:
    import traces

    loads = traces.synthetic(90, 4.0, seed=2)
    names = [f"f{number}" for number in range(90)]
    found = traces.requests(names, loads, 10.0, seed=2)
    described = traces.describe(found, 4.0 * DAY)

    assert traces.shares(90)[0] == pytest.approx(0.30, abs=0.005)
    assert sum(traces.shares(90)[:10]) == pytest.approx(0.87, abs=0.005)
    assert described["top_1_share"] == pytest.approx(0.30, abs=0.03)
    assert described["top_10_share"] == pytest.approx(0.87, abs=0.03)
    assert described["peak_10_minutes_over_mean"] == pytest.approx(20.0, rel=0.15)
    assert 2.5 < described["interval_variation_median"] < 4.5
    assert described["execution_seconds_p50"] == pytest.approx(23.0, rel=0.05)
    assert described["execution_seconds_p99"] == pytest.approx(100.0, rel=0.1)
    assert found == sorted(found, key=lambda request: request.at)
