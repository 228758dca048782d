"""`stoker placement`, `stoker node`, `stoker gateway`: what they refuse. tests/chaos runs them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.stack import STOKER


def refused(*arguments: object) -> str:
    ran = subprocess.run(
        [STOKER, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    return ran.stderr


@pytest.mark.parametrize("verb", ["placement", "node"])
def test_a_process_without_the_clusters_token_does_not_start(tmp_path: Path, verb: str) -> None:
    said = refused(verb, "--state", tmp_path / "s", "--cluster-token-file", tmp_path / "token")
    assert f"Expected a secret in {tmp_path / 'token'}" in said


def test_a_bad_option_is_named(tmp_path: Path) -> None:
    state = ("--state", tmp_path / "s")
    assert "STOKER_PLACEMENT_BIND" in refused("placement", *state, "--bind", "nowhere")
    assert "Expected a size, found 'much'" in refused("node", *state, "--dram-bytes", "much")
    assert "STOKER_GATEWAY_BIND" in refused("gateway", *state, "--bind", "x:y")


def test_a_zone_that_is_no_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-token-that-is-long-enough")
    given = ("--state", tmp_path / "s", "--cluster-token-file", tmp_path / "token")
    assert "found 'rack 1'" in refused("node", *given, "--zone", "rack 1")


def test_a_gateway_open_to_the_network_wants_a_password_first(tmp_path: Path) -> None:
    said = refused("gateway", "--state", tmp_path / "s", "--bind", "0.0.0.0:0")
    assert "Expected a password" in said
