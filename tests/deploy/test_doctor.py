"""`stoker doctor` as a user runs it, and what it asks of a gateway."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import stoker
from harness import fake_gateway
from stoker.deploy.doctor import in_words, summary, worst_state
from stoker.deploy.doctor_gateway import gateway_checks
from stoker.placement.stores import open_store
from stoker.runtime.doctor_check import Check

NOBODY = "http://127.0.0.1:1"


def doctor(state: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "stoker.deploy.main", "doctor", "--state", str(state), *arguments],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def states(gateway: str | None, **environment: str) -> dict[str, str]:
    return {check.name: check.state for check in gateway_checks(gateway, environment)}


def test_json_names_every_check_with_its_state_and_sentences(tmp_path: Path) -> None:
    state = tmp_path / "state"
    began_at = time.monotonic()
    ran = doctor(state, "--json")
    took_seconds = time.monotonic() - began_at

    said = json.loads(ran.stdout)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert said["state"] in ("ok", "warn")
    assert all(set(check) == {"name", "state", "found", "remedy"} for check in said["checks"])
    assert all(check["found"] for check in said["checks"])
    assert all(bool(check["remedy"]) == (check["state"] != "ok") for check in said["checks"])
    assert {check["name"] for check in said["checks"]} >= {
        *("Python", "packages", "native module", "state directory", "disk space", "memory"),
        *("direct reads", "huge pages, shared memory", "huge pages, anonymous memory"),
        *("shared memory", "locked memory", "io_uring", "open files", "cores"),
        *("checkpoint digest", "GPUs", "store", "S3", "gateway"),
    }
    assert took_seconds < 3
    assert not state.exists()


def test_a_failed_check_makes_the_exit_status_1_and_is_told_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    ran = doctor(tmp_path / "state")

    assert ran.returncode == 1
    assert "fail  state directory" in ran.stdout
    assert "-> Give this user the right to write it" in ran.stdout
    assert "cannot run well" in ran.stdout.splitlines()[-1]
    assert "Traceback" not in ran.stderr


def test_a_store_that_is_in_use_is_read_beside_its_users(tmp_path: Path) -> None:
    store = open_store(f"sqlite://{tmp_path}/store.sqlite", "token")
    try:
        store.put("/before", b"1")
        ran = doctor(tmp_path, "--json")
        store.put("/after", b"2")
        assert store.get("/before") is not None
    finally:
        store.close()

    (check,) = [c for c in json.loads(ran.stdout)["checks"] if c["name"] == "store"]
    assert (check["state"], "answers and is sound" in check["found"]) == ("ok", True)


def test_a_bad_setting_is_a_failed_check(tmp_path: Path) -> None:
    ran = doctor(tmp_path, "--json", STOKER_DRAM_BYTES="much")

    assert ran.returncode == 1
    (memory,) = [c for c in json.loads(ran.stdout)["checks"] if c["name"] == "memory"]
    assert "STOKER_DRAM_BYTES" in memory["found"]


def test_no_gateway_is_no_fault_unless_one_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stoker.gateway.cli.client.DEFAULT_GATEWAY", NOBODY)

    assert states(None) == {"gateway": "ok"}
    assert states(NOBODY) == {"gateway": "fail"}
    assert states(None, STOKER_GATEWAY=NOBODY) == {"gateway": "fail"}
    assert states("ftp://x") == {"gateway": "fail"}


def test_a_running_gateway_is_asked_for_its_nodes_and_release() -> None:
    with fake_gateway.serve() as gateway:
        found = states(gateway.url, STOKER_PASSWORD=fake_gateway.PASSWORD)

    assert found == {"gateway": "ok", "password": "ok", "nodes": "ok", "release": "ok"}


def test_a_refused_password_fails() -> None:
    with fake_gateway.serve() as gateway:
        found = states(gateway.url, STOKER_PASSWORD="another")

    assert found == {"gateway": "ok", "password": "fail"}


@pytest.mark.parametrize(
    ("nodes", "release", "expected"),
    [
        ([], stoker.__version__, {"nodes": "warn", "release": "ok"}),
        (
            [{"node_id": "n-2", "zygote_ready": False}],
            "0.0.9",
            {"nodes": "warn", "release": "warn"},
        ),
    ],
)
def test_missing_nodes_and_another_release_are_told(
    nodes: list[dict[str, object]],
    release: str,
    expected: dict[str, str],
) -> None:
    with fake_gateway.serve() as gateway:
        gateway.nodes, gateway.release = nodes, release
        found = states(gateway.url, STOKER_PASSWORD=fake_gateway.PASSWORD)

    assert found == {"gateway": "ok", "password": "ok", **expected}


def test_the_whole_is_as_bad_as_its_worst_part() -> None:
    good, slow, bad = Check("a", "ok", "A."), Check("b", "warn", "B.", "C."), Check("d", "fail", "")

    assert worst_state([good]) == "ok"
    assert worst_state([slow, good]) == "warn"
    assert worst_state([slow, bad, good]) == "fail"
    assert summary([good, slow]).startswith("1 ok, 1 to improve, 0 failed.")


def test_a_remedy_stands_unbroken_on_a_line_of_its_own() -> None:
    command = "echo advise > /a/very/long/path" * 5

    assert in_words(Check("name", "warn", "Found.", command)).splitlines()[1].endswith(command)
