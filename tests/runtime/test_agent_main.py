"""A real agent process with a real zygote, real workers and a SQLite store."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from harness import tiny_model
from harness.agent import NODE, AgentProcess, handler_archive
from harness.stack import wait_until
from stoker.placement.records import (
    CheckpointRef,
    FunctionRecord,
    Prefetch,
    ResolveRequest,
    decode,
    encode,
)

ECHO = """
def handle(event, context):
    print("called", flush=True)
    return {"statusCode": 200, "body": event.body}
"""


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    running = AgentProcess(tmp_path_factory.mktemp("agent") / "state")
    running.ready()
    yield running
    running.close()


@pytest.fixture(scope="module")
def echo(agent: AgentProcess) -> FunctionRecord:
    digest, payload = handler_archive(ECHO)
    agent.bundles.put(digest, payload)
    function = FunctionRecord("echo", "openfaas-fn", "echo:latest", code_digest=digest)
    agent.deploy(function)
    return function


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_client_that_calls_at_once_is_answered_by_the_instance_to_come(
    agent: AgentProcess, echo: FunctionRecord
) -> None:
    order = agent.assign("1-0", echo)
    answer = agent.call(order.address, b"hello")
    assert (answer.status, answer.body) == (200, b"hello")
    record = agent.instance("1-0", "serving")
    assert alive(record.pid)
    agent.revoke(order)
    agent.gone("1-0")
    assert not alive(record.pid)
    log = agent.http("GET", "/logs?function=echo.openfaas-fn&instance=1-0").body.decode()
    assert '"text":"called"' in log
    assert "instance 1-0 starting" in log
    assert "instance 1-0 ended" in log


def test_a_killed_worker_is_told_and_its_address_refuses(
    agent: AgentProcess, echo: FunctionRecord
) -> None:
    order = agent.assign("1-1", echo)
    record = agent.instance("1-1", "serving")
    # One that dies before anybody called it would be a start that failed.
    assert agent.call(order.address).status == 200
    os.kill(record.pid, signal.SIGKILL)
    agent.wait_for(lambda s: s.instances["1-1"].state == "failed")
    failure = agent.view.snapshot().instances["1-1"].failure
    assert failure is not None
    assert failure["code"] == "instance_lost"
    assert "died of signal 9" in failure["cause"]
    host, port = order.address.split(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)
    agent.revoke(order)
    agent.gone("1-1")


def test_a_handler_that_does_not_start_fails_with_its_cause(agent: AgentProcess) -> None:
    digest, payload = handler_archive("handle = 3")
    agent.bundles.put(digest, payload)
    broken = FunctionRecord("broken", "openfaas-fn", "broken:latest", code_digest=digest)
    agent.deploy(broken)
    order = agent.assign("1-2", broken)
    agent.wait_for(lambda s: (i := s.instances.get("1-2")) and i.state == "failed")
    failure = agent.view.snapshot().instances["1-2"].failure
    assert failure is not None
    assert failure["code"] == "start_failed"
    assert "handle" in failure["cause"]
    agent.revoke(order)
    agent.gone("1-2")


def test_a_model_is_resolved_loaded_and_served_and_its_weights_stay(
    agent: AgentProcess, tmp_path: Path
) -> None:
    uri = f"file://{tiny_model.write_llama(tmp_path / 'tiny')}"
    answer = agent.http("POST", "/resolve", encode(ResolveRequest(uri)))
    assert answer.status == 200, answer.body
    ref = decode(CheckpointRef, answer.body)
    chat = FunctionRecord("chat", "openfaas-fn", "chat:latest", task="chat", checkpoint=ref)
    agent.deploy(chat)
    order = agent.assign("1-3", chat)
    reply = agent.call(order.address, {"messages": [{"role": "user", "content": "Hi"}]})
    assert reply.status == 200, reply.body
    agent.instance("1-3", "serving")
    agent.revoke(order)
    agent.gone("1-3")
    snapshot = agent.wait_for(lambda s: (NODE, ref.digest) in s.residents)
    assert snapshot.residents[(NODE, ref.digest)].dram_bytes > 0


def test_a_model_that_was_ordered_ahead_is_in_memory_at_its_first_start(
    agent: AgentProcess, tmp_path: Path
) -> None:
    uri = f"file://{tiny_model.write_llama(tmp_path / 'ahead', seed=1)}"
    ref = decode(CheckpointRef, agent.http("POST", "/resolve", encode(ResolveRequest(uri))).body)
    ahead = Prefetch(NODE, 1, (ref,))
    agent.store.put(ahead.path, encode(ahead))
    agent.wait_for(
        lambda s: (r := s.residents.get((NODE, ref.digest))) and r.dram_bytes == ref.weight_bytes
    )
    assert agent.view.snapshot().instances == {}

    chat = FunctionRecord("ahead", "openfaas-fn", "chat:latest", task="chat", checkpoint=ref)
    agent.deploy(chat)
    order = agent.assign("1-7", chat)
    reply = agent.call(order.address, {"messages": [{"role": "user", "content": "Hi"}]})
    assert reply.status == 200, reply.body
    record = agent.instance("1-7", "serving")
    assert (record.fetch_seconds, record.ssd_seconds) == (0.0, 0.0)
    agent.revoke(order)
    agent.gone("1-7")


def test_a_model_that_is_not_there_is_a_typed_error(agent: AgentProcess, tmp_path: Path) -> None:
    answer = agent.http("POST", "/resolve", encode(ResolveRequest(f"file://{tmp_path}/none")))
    assert (answer.status, answer.json()["error"]["code"]) == (400, "checkpoint_missing")


def test_a_second_agent_on_one_state_directory_is_refused_and_harms_nothing(
    agent: AgentProcess, echo: FunctionRecord
) -> None:
    order = agent.assign("1-6", echo)
    agent.instance("1-6", "serving")
    leftover = agent.state / "ssd" / "half.tmp"  # the first agent may be writing this
    leftover.mkdir()

    second = subprocess.run(
        [sys.executable, "-P", "-m", "stoker.runtime.agent_main"],
        env=agent.variables | {"STOKER_NODE_ID": "node-2"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert second.returncode == 1
    assert f"agent.lock, found process {agent.process.pid}." in second.stderr
    assert leftover.exists()
    assert agent.call(order.address, b"still").body == b"still"
    leftover.rmdir()
    agent.revoke(order)
    agent.gone("1-6")


def test_after_kill_9_every_worker_is_gone_and_a_new_agent_gives_the_order_back(
    agent: AgentProcess, echo: FunctionRecord
) -> None:
    order = agent.assign("1-4", echo)
    record = agent.instance("1-4", "serving")
    family = [record.pid, *(p.pid for p in psutil.Process(agent.process.pid).children(True))]
    agent.kill()
    wait_until(lambda: not any(alive(pid) for pid in family), "the workers are gone", 10)
    agent.wait_for(lambda s: NODE not in s.nodes)
    agent.start()
    agent.ready()
    agent.wait_for(lambda s: (i := s.instances.get("1-4")) and i.state == "failed")
    failure = agent.view.snapshot().instances["1-4"].failure
    assert failure is not None
    assert "the agent was restarted" in failure["cause"]
    agent.revoke(order)
    agent.gone("1-4")


def test_sigterm_drains_and_exits_0_and_nothing_is_left(
    agent: AgentProcess, echo: FunctionRecord
) -> None:
    order = agent.assign("1-5", echo)
    record = agent.instance("1-5", "serving")
    family = [record.pid, *(p.pid for p in psutil.Process(agent.process.pid).children(True))]
    assert agent.stop() == 0
    agent.wait_for(lambda s: NODE not in s.nodes and not s.instances)
    wait_until(lambda: not any(alive(pid) for pid in family), "no process is left", 10)
    agent.revoke(order)
