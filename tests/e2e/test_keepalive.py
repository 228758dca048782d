"""What the leader learns of idle times, with bins so narrow that a test sees it act."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.stack import Stack, wait_until

ECHO = "def handle(event, context):\n    return event.body\n"
BIN_SECONDS = 0.1
IDLE_SECONDS = 5.0
UNEVEN_SECONDS = (0.7, 7.0, 1.1, 9.0, 0.8, 3.0, 6.0, 0.6, 4.0, 8.0, 2.0, 5.0)


@pytest.fixture
def brisk(tmp_path: Path) -> Iterator[Stack]:
    variables = {"STOKER_IDLE_BIN_SECONDS": str(BIN_SECONDS)}
    running = Stack(tmp_path / "state", variables, ("--dram-bytes", "64MiB")).start()
    yield running
    running.stop()


def test_a_function_called_at_regular_times_is_ready_before_its_next_call_and_another_is_not(
    brisk: Stack, tmp_path: Path
) -> None:
    for name in ("regular", "uneven"):
        brisk.deploy_code(tmp_path / "code", name, ECHO)

    def call_unevenly() -> None:
        for seconds in UNEVEN_SECONDS:
            brisk.call("uneven")
            time.sleep(seconds)
        brisk.call("uneven")

    other = threading.Thread(target=call_unevenly)
    other.start()
    for number in range(11):
        if number:
            time.sleep(IDLE_SECONDS)
        assert brisk.call("regular").status == 200
    ended_at = time.monotonic()
    time.sleep(IDLE_SECONDS / 2)
    # Nobody calls it, it is gone, and comes back by itself shortly before the time.
    assert brisk.instances("regular") == []
    ahead = wait_until(lambda: brisk.instances("regular"), "it is started ahead", IDLE_SECONDS)
    assert 0.8 * IDLE_SECONDS < time.monotonic() - ended_at < 1.1 * IDLE_SECONDS
    answer = brisk.call("regular")
    assert (answer.status, answer.headers["x-served-by"]) == (200, ahead[0]["instance_id"])

    other.join()
    wait_until(lambda: not brisk.instances("uneven"), "the other one is gone")
    until = time.monotonic() + max(UNEVEN_SECONDS) + 1.0
    while time.monotonic() < until:
        assert brisk.instances("uneven") == []
        time.sleep(0.2)
