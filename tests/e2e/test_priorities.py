"""A node with one place for two functions, of which one has the higher priority."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.stack import Stack, wait_until

HANDLER = """
import time

def handle(event, context):
    time.sleep(float(event.body))
    return "done"
"""
# The gateway tells what it has in flight once a second.
REPORTED_SECONDS = 2.5
LONG_SECONDS = 6.0


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("narrow")
    variables = {"STOKER_INSTANCES_MAXIMUM": "1"}
    running = Stack(folder / "state", variables, ("--dram-bytes", "64MiB")).start()
    for name, priority in (("low", "0"), ("high", "5")):
        running.deploy_code(folder, name, HANDLER, {"stoker/priority": priority})
    yield running
    running.stop()


def busy(stack: Stack, name: str) -> bool:
    return any(instance["in_flight"] for instance in stack.instances(name))


def test_a_call_of_the_higher_priority_takes_the_place_and_what_runs_there_ends(
    narrow: Stack, tmp_path: Path
) -> None:
    with ThreadPoolExecutor() as threads:
        long = threads.submit(narrow.call, "low", str(LONG_SECONDS).encode())
        wait_until(lambda: busy(narrow, "low"), "low is in use")
        time.sleep(REPORTED_SECONDS)

        began = time.monotonic()
        assert (narrow.call("high", b"0").status, time.monotonic() - began < LONG_SECONDS) == (
            200,
            True,
        )
        assert (long.result().status, long.result().body) == (200, b"done")


def test_a_call_of_the_lower_priority_finds_no_room(narrow: Stack) -> None:
    with ThreadPoolExecutor() as threads:
        long = threads.submit(narrow.call, "high", str(LONG_SECONDS).encode())
        wait_until(lambda: busy(narrow, "high"), "high is in use")
        time.sleep(REPORTED_SECONDS)

        refused = narrow.call("low", b"0")
        assert (refused.status, "1 of 1 instances are in use" in refused.body.decode()) == (
            503,
            True,
        )
        assert long.result().status == 200
