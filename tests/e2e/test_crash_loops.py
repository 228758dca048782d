"""Functions that cannot start are given up with their reason; those that fail later are not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.stack import Stack, wait_until

GOOD = "def handle(event, context):\n    return 'well'\n"
DIES_AT_IMPORT = "import os\nos._exit(3)\n\ndef handle(event, context):\n    return 'never'\n"
DIES_WHEN_CALLED = "import os\n\ndef handle(event, context):\n    os._exit(4)\n"
DIES_SOON = (
    "import os, threading\n"
    "threading.Timer(0.3, os._exit, (5,)).start()\n\n"
    "def handle(event, context):\n    return 'never'\n"
)
# 1 + 2 + 4 + 8 s of pauses, and five starts on a busy machine.
GIVEN_UP_SECONDS_MAX = 60.0


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stoker")
    running = Stack(folder / "state", {}, ("--dram-bytes", "64MiB")).start()
    yield running
    running.stop()


def failure(stack: Stack, name: str) -> dict[str, Any]:
    found: dict[str, Any] = stack.system("GET", f"/system/function/{name}").json()
    return found.get("failure") or {}


def given_up(stack: Stack, name: str) -> bool:
    found = failure(stack, name)
    return bool(found) and found["retryAt"] is None


def starts(stack: Stack, name: str) -> int:
    return stack.run("logs", name).stdout.count(" starting")


def test_after_five_failed_starts_callers_and_deployers_hear_why_until_it_is_corrected(
    plain: Stack, tmp_path: Path
) -> None:
    plain.deploy_code(tmp_path, "broken", DIES_AT_IMPORT)
    began = time.monotonic()
    codes: list[str] = []

    def refused_for_good() -> bool:
        answer = plain.call("broken")
        assert answer.status in (502, 503)
        codes.append(answer.json()["error"]["code"])
        return codes[-1] == "crash_loop"

    wait_until(refused_for_good, "the function is given up", GIVEN_UP_SECONDS_MAX)
    assert time.monotonic() - began > 15.0
    assert set(codes) <= {"instance_lost", "start_failed", "crash_loop"}
    assert starts(plain, "broken") == 5

    waits = []
    for _ in range(5):
        asked_at = time.monotonic()
        answer = plain.call("broken")
        waits.append(time.monotonic() - asked_at)
        assert answer.status == 503
        assert "5 times in a row" in answer.json()["error"]["cause"]
        assert "exit code 3" in answer.json()["error"]["cause"]
        assert "retry-after" not in answer.headers
    assert min(waits) < 0.1
    described = plain.run("describe", "broken").stdout
    assert "5 in a row, given up until deployed or scaled again" in described
    assert "exit code 3" in described
    assert starts(plain, "broken") == 5

    plain.run("scale", "broken", "1")
    wait_until(lambda: starts(plain, "broken") >= 6, "it was tried once more")
    wait_until(lambda: failure(plain, "broken").get("failedStarts") == 1, "it is counted anew")
    plain.deploy_code(tmp_path, "broken", GOOD)
    wait_until(lambda: plain.call("broken").body == b"well", "the corrected one answers")
    assert failure(plain, "broken") == {}


def test_an_instance_that_dies_uncalled_right_after_its_start_counts_as_failed(
    plain: Stack, tmp_path: Path
) -> None:
    plain.deploy_code(tmp_path, "brief", DIES_SOON, {"com.openfaas.scale.min": "1"})
    wait_until(lambda: given_up(plain, "brief"), "it is given up", GIVEN_UP_SECONDS_MAX)
    found = failure(plain, "brief")
    assert (found["failedStarts"], found["code"]) == (5, "start_failed")
    assert "exit code 5" in found["cause"]
    plain.remove("brief")


def test_a_handler_that_dies_at_every_request_is_started_for_each_next_one(
    plain: Stack, tmp_path: Path
) -> None:
    plain.deploy_code(tmp_path, "poisoned", DIES_WHEN_CALLED)
    for _ in range(7):
        answer = plain.call("poisoned")
        assert (answer.status, answer.json()["error"]["code"]) == (502, "instance_lost")
    assert failure(plain, "poisoned") == {}
    assert starts(plain, "poisoned") >= 7
    plain.remove("poisoned")
