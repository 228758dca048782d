import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from stoker.deploy.main import main

CLUSTER = """\
nodes:
  - {name: server, count: 2, devices: 2, dram_bytes: 100e9, ssd_bandwidth: 2e9}
functions:
  - {name: m, count: 4, weight_bytes: 10e9, devices: 1, token_seconds: 0.02}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    rows = [f"{3 * n},m-{n % 4},{0.5 + n % 3}" for n in range(200)]
    (tmp_path / "own.csv").write_text("\n".join(["t_s,function,seconds", *rows]))
    return tmp_path


def run(*arguments: str | Path) -> str:
    found = CliRunner().invoke(main, [str(a) for a in arguments])
    assert found.exit_code == 0, found.output
    return found.output


def test_a_trace_is_replayed_under_each_policy(folder: Path) -> None:
    options = ("--cluster", folder / "cluster.yaml", "--trace", folder / "own.csv")
    policies = ("--policy", "random", "--policy", "stoker", "--seed", 1, "--seed", 2)
    found = json.loads(run("simulate", *options, *policies, "--json"))
    assert set(found) == {"random", "stoker"}
    for figures in found.values():
        assert (figures["requests"], figures["seeds"], figures["unfinished"]) == (200, 2, 0)
        assert figures["start_seconds_p99"] > 0
    table = run("simulate", *options).splitlines()
    assert table[0].startswith("POLICY\tP50 S")
    assert table[1].startswith("stoker\t")


def test_requests_may_be_drawn_and_nodes_may_fail(folder: Path) -> None:
    drawn = ("--rps", 0.5, "--cv", 8, "--minutes", 10, "--failure-hours", 0.05)
    output = run("simulate", "--cluster", folder / "cluster.yaml", *drawn, "--json")
    assert json.loads(output)["stoker"]["failures"] > 0
    assert output == run("simulate", "--cluster", folder / "cluster.yaml", *drawn, "--json")


def test_pictures_are_drawn(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    options = ("--cluster", folder / "cluster.yaml", "--trace", folder / "own.csv")
    run("simulate", *options, "--plots", folder / "plots")
    made = sorted(path.name for path in (folder / "plots").iterdir())
    assert made == ["migrations.png", "start-up-latency.png", "tiers.png"]
    for path in (folder / "plots").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("arguments", [(), ("--rps", "1", "--trace", "own.csv")])
def test_who_calls_is_said_once(folder: Path, arguments: tuple[str, ...]) -> None:
    named = [str(folder / a) if a.endswith(".csv") else a for a in arguments]
    options = ["simulate", "--cluster", str(folder / "cluster.yaml"), *named]
    found = CliRunner().invoke(main, options)
    assert found.exit_code == 1
    assert "one of --trace and --rps" in found.output


def test_a_plan_says_what_idle_times_slots_and_pins_would_do(folder: Path) -> None:
    found = json.loads(run("plan", "--trace", folder / "own.csv", "--weight-bytes", 1e9, "--json"))
    rows = {row["choice"]: row for row in found["idle_times"]}
    assert set(rows) == {"learned", "0s", "60s", "300s", "900s", "3600s"}
    # Calls come every 12 s: without idle instances each is cold, with some hardly one.
    assert rows["0s"]["cold_share"] == 1.0
    assert rows["60s"]["cold_share"] < 0.05
    assert rows["0s"]["instance_hours"] < rows["3600s"]["instance_hours"]
    assert {pin["function"] for pin in found["pins"]} <= {f"m-{n}" for n in range(4)}
    assert "Idle time:" in run("plan", "--trace", folder / "own.csv", "--weight-bytes", 1e9)
