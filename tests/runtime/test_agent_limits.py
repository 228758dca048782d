"""The limits of a spec, held by a real agent: who exceeds them fails alone and says why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.agent import NODE, AgentProcess, handler_archive
from harness.stack import wait_until
from stoker.placement.records import FunctionRecord
from stoker.runtime import cgroup_trees

HANDLER = """
import os
import subprocess
import sys
import threading
import time

kept = []

def handle(event, context):
    command, _, amount = event.body.decode().partition(" ")
    if command == "take":
        while sum(map(len, kept)) < int(amount):
            kept.append(bytearray(1 << 20))
    elif command == "ask":
        import numpy
        numpy.ones(int(amount), numpy.uint8)
    elif command == "threads":
        for _ in range(int(amount)):
            threading.Thread(target=time.sleep, args=(2,), daemon=True).start()
    elif command == "leave":
        return str(subprocess.Popen(["sleep", "60"], start_new_session=True).pid)
    return "done"
"""
MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    running = AgentProcess(tmp_path_factory.mktemp("limits") / "state")
    try:
        missing = {"cgroup-memory", "cgroup-pids", "cgroup-cpu"} - {*running.ready().sandbox}
        if missing:
            why = cgroup_trees.find(claim=False).missing
            pytest.skip(f"no {', '.join(sorted(missing))} here: {why}")
        yield running
    finally:
        running.close()


def deploy(agent: AgentProcess, name: str, **limits: str) -> FunctionRecord:
    digest, payload = handler_archive(HANDLER)
    agent.bundles.put(digest, payload)
    function = FunctionRecord(
        name, "openfaas-fn", f"{name}:latest", code_digest=digest, limits=limits
    )
    agent.deploy(function)
    return function


def log_of(agent: AgentProcess, name: str) -> str:
    return agent.http("GET", f"/logs?function={name}.openfaas-fn").body.decode()


def test_the_node_says_what_it_holds_functions_by(agent: AgentProcess) -> None:
    levels = agent.view.snapshot().nodes[NODE].sandbox

    assert levels[:2] == ("no-new-privileges", "rlimits")
    assert "capabilities" in levels


def test_a_worker_that_takes_too_much_memory_dies_alone_and_says_what_it_held(
    agent: AgentProcess,
) -> None:
    greedy = deploy(agent, "greedy", memory="160Mi")
    order = agent.assign("2-1", greedy)
    assert agent.call(order.address, f"take {16 * MEBIBYTE}".encode()).status == 200
    agent.instance("2-1", "serving")
    other = agent.assign("2-2", deploy(agent, "modest", memory="160Mi"))
    assert agent.call(other.address, b"take 0").status == 200

    with pytest.raises(OSError, match=r"."):
        agent.call(order.address, f"take {300 * MEBIBYTE}".encode())

    agent.wait_for(lambda s: s.instances["2-1"].state == "failed")
    failure = agent.view.snapshot().instances["2-1"].failure
    assert failure is not None
    assert failure["code"] == "instance_lost"
    assert "at most 167,772,160 bytes of memory (limits.memory)" in failure["cause"]
    assert "asked for more when it held" in failure["cause"]
    assert "Raise limits.memory" in failure["remedy"]
    wait_until(lambda: "limits.memory" in log_of(agent, "greedy"), "the log says so")
    assert agent.call(other.address, b"take 0").status == 200
    for each in (order, other):
        agent.revoke(each)
        agent.gone(each.instance_id)


def test_one_request_for_too_much_memory_is_refused_with_its_size(agent: AgentProcess) -> None:
    order = agent.assign("2-3", deploy(agent, "asking", memory="160Mi"))

    refused = agent.call(order.address, b"ask 8589934592")
    after = agent.call(order.address, b"take 0")

    assert refused.status == 500
    assert "Unable to allocate 8.00 GiB" in refused.json()["error"]["cause"]
    assert after.status == 200
    assert "MemoryError" in log_of(agent, "asking")
    agent.revoke(order)
    agent.gone("2-3")


def test_processes_over_the_limit_are_refused_and_told(agent: AgentProcess) -> None:
    order = agent.assign("2-4", deploy(agent, "forking", pids="40"))

    refused = agent.call(order.address, b"threads 60")
    after = agent.call(order.address, b"take 0")

    assert (refused.status, after.status) == (500, 200)
    agent.revoke(order)
    agent.gone("2-4")
    assert "at most 40 processes and threads (limits.pids)" in log_of(agent, "forking")


def test_nothing_that_an_instance_started_outlives_it(agent: AgentProcess) -> None:
    order = agent.assign("2-5", deploy(agent, "leaving"))
    pid = int(agent.call(order.address, b"leave").body)
    assert Path(f"/proc/{pid}").exists()

    agent.revoke(order)
    agent.gone("2-5")

    def ended() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    wait_until(ended, "what it left behind has ended")


def test_no_control_group_is_left(agent: AgentProcess) -> None:
    wait_until(lambda: not agent.view.snapshot().instances, "no instance is left")
    for function in agent.view.snapshot().functions.values():
        agent.store.delete(function.path)  # no process is parked for it any more
    trees = cgroup_trees.find(claim=False)._hierarchies

    def groups() -> list[Path]:
        name = f"stoker-{agent.process.pid}-*"
        return [group for tree in trees for group in tree.folder.glob(name)]

    wait_until(lambda: not groups(), "no group is left")
