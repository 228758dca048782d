"""The gateway benchmark: its arithmetic, and its load against its null server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.stack import free_port, wait_until

GATEWAY = Path(__file__).resolve().parents[2] / "benchmarks" / "gateway"


@pytest.fixture(scope="module")
def null_port() -> Iterator[int]:
    port = free_port()
    with subprocess.Popen([sys.executable, str(GATEWAY / "null_server.py"), str(port)]) as server:
        try:
            wait_until(
                lambda: load(port, kind="first", path="/", count=1, check=False), "it answers"
            )
            yield port
        finally:
            server.terminate()


def load(port: int, *, check: bool = True, **fields: Any) -> dict[str, Any] | None:
    told = json.dumps({"port": port, "seconds": 0.5, **fields})
    ran = subprocess.run(
        [sys.executable, str(GATEWAY / "load.py"), told],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=check,
    )
    lines = ran.stdout.splitlines()
    return json.loads(lines[-1]) if ran.returncode == 0 else None


def test_an_open_load_sends_at_its_rate_and_times_every_answer(null_port: int) -> None:
    found = load(null_port, kind="open", path="/", rate=200.0)
    assert found is not None
    assert 60 < found["requests"] < 140
    assert (found["answered"], found["failed"]) == (found["requests"], 0)
    assert 0 < found["p50_ms"] <= found["p99_ms"]


def test_streams_are_held_and_counted(null_port: int) -> None:
    found = load(null_port, kind="hold", path="/hold", count=150)
    assert found == {"streams": 150, "still_open": 150}


def test_the_first_event_is_timed_not_the_last(null_port: int) -> None:
    found = load(null_port, kind="first", path="/stream", count=5)
    assert found is not None
    assert found["p50_ms"] < 30


def test_what_is_compared_is_compared_within_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(GATEWAY))
    from summary import figures

    def taken(stoker: float, chat: float, litellm: float, p50: float) -> dict[str, Any]:
        return {
            "closed stoker": {"per_core": stoker, "failed": 0},
            "closed stoker_chat": {"per_core": chat, "failed": 1},
            "closed litellm": {"per_core": litellm, "failed": 0},
            "closed kserve": {"per_core": 1000.0, "failed": 0},
            "open stoker": {"p50_ms": p50, "p99_ms": 4.0},
            "open direct": {"p50_ms": 0.5, "p99_ms": 1.0},
            "hold stoker": {"before_mb": 60.0, "held_mb": 160.0},
        }

    rounds = [taken(2000, 1800, 200, 1.0), taken(3000, 2000, 100, 1.5), taken(2500, 900, 90, 1.2)]
    found = figures(rounds, ("litellm", "kserve"))
    assert found == {
        "added_p50_ms": 0.7,
        "added_p99_ms": 3.0,
        "requests_per_second_core": 2500,
        "chat_requests_per_second_core": 1800,
        "added_ttft_p50_ms": None,
        "vs_litellm": 10.0,
        "best_peer_ratio": 2.5,
        "idle_streams_2000_mb": 160.0,
        "idle_gateway_mb": 60.0,
        "failed_requests": 3.0,
    }
