"""A real agent makes a process ready for a function's next start, and gives it that start."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from harness import tiny_model
from harness.agent import NODE, TOKEN, AgentProcess, handler_archive
from harness.waiting import eventually, gone
from stoker.placement.instance_token import instance_token
from stoker.placement.records import (
    Assignment,
    CheckpointRef,
    FunctionRecord,
    ResolveRequest,
    decode,
    encode,
)

IMPORT_SECONDS = 0.7
HANDLER = f"""
import os, random, sys, time
time.sleep({IMPORT_SECONDS})
MADE = random.random()
print("imported by", os.getpid(), flush=True)
def handle(event, context):
    return {{"pid": os.getpid(), "made": MADE, "host": context.hostname}}
"""


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    running = AgentProcess(tmp_path_factory.mktemp("agent") / "state")
    running.ready()
    yield running
    running.close()


def deploy(agent: AgentProcess, name: str, source: str = HANDLER) -> FunctionRecord:
    digest, payload = handler_archive(source)
    agent.bundles.put(digest, payload)
    function = FunctionRecord(name, "openfaas-fn", f"{name}:latest", code_digest=digest)
    agent.deploy(function)
    return function


def texts(agent: AgentProcess, function: FunctionRecord) -> list[tuple[str, str]]:
    """Who wrote each line of the function's log, and the line."""
    lines = agent.http("GET", f"/logs?function={function.key}").body.decode().splitlines()
    return [(fields["instance"], fields["text"]) for fields in map(json.loads, lines)]


def served(
    agent: AgentProcess, function: FunctionRecord, name: str, body: object = ""
) -> tuple[Assignment, float]:
    """An instance that has answered, and the seconds from its order to the answer."""
    began = time.monotonic()
    order = agent.assign(name, function)
    assert agent.call(order.address, body).status == 200
    seconds = time.monotonic() - began
    agent.instance(name, "serving")
    return order, seconds


def end(agent: AgentProcess, order: Assignment) -> None:
    agent.revoke(order)
    agent.gone(order.instance_id)


def parked(agent: AgentProcess, function: FunctionRecord, count: int = 1) -> int:
    """The pid of the `count`-th process that was made ready for it."""

    def ready() -> list[str]:
        return [who for who, text in texts(agent, function) if "is ready for the next" in text]

    eventually(lambda: len(ready()) >= count, seconds=30)
    zygote = min(psutil.Process(agent.process.pid).children(), key=lambda p: p.create_time())
    serving = {instance.pid for instance in agent.view.snapshot().instances.values()}
    (pid,) = (
        child.pid
        for child in zygote.children()
        if child.pid not in serving and child.cwd().endswith(str(function.code_digest))
    )
    return pid


def test_the_next_start_finds_its_code_imported_and_shares_nothing_with_the_first(
    agent: AgentProcess,
) -> None:
    function = deploy(agent, "slow")
    first, first_seconds = served(agent, function, "1-0")
    first_made = agent.call(first.address).json()
    pid = parked(agent, function)
    assert ("parked-1", f"imported by {pid}") in texts(agent, function)
    agent.wait_for(lambda s: s.nodes[NODE].parked == (function.key,))
    second, second_seconds = served(agent, function, "1-1")
    agent.wait_for(lambda s: s.nodes[NODE].parked == ())
    second_made = agent.call(second.address).json()
    third, _ = served(agent, function, "1-2")
    third_made = agent.call(third.address).json()

    assert second_made["pid"] == agent.instance("1-1", "serving").pid == pid
    assert second_made["host"] == "1-1"
    assert [agent.instance(name, "serving").parked for name in ("1-0", "1-1")] == [False, True]
    assert len({made["made"] for made in (first_made, second_made, third_made)}) == 3
    assert first_seconds > IMPORT_SECONDS > 2 * second_seconds
    log = texts(agent, function)
    assert any(who == "1-1" and f"took parked worker pid {pid}" in text for who, text in log)
    for order in (first, second, third):
        end(agent, order)
    agent.store.delete(function.path)
    eventually(lambda: gone(pid))
    assert not (agent.state / "run/instances/parked-1").exists()


SEARCH = """
import json, re
def handle(event, context):
    found = []
    for first, second in json.loads(event.body):
        first, second = (half[::-1].encode() for half in (first, second))
        found.append(sum(occurrences(first, second)))
    return found
def occurrences(first, second):
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
        for line in list(maps):
            begin, end, rights = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\\S+)", line).groups()
            if not rights.startswith("rw"): continue
            try:
                memory.seek(int(begin, 16))
                data = memory.read(int(end, 16) - int(begin, 16))
            except OSError: continue
            yield sum(data.startswith(second, m.end()) for m in re.finditer(re.escape(first), data))
"""


def test_the_clusters_token_is_not_in_the_memory_of_user_code(agent: AgentProcess) -> None:
    function = deploy(agent, "search", SEARCH)
    order, _ = served(agent, function, "0-0", [])
    # In halves and backwards, so that the question does not hold what it asks for.
    tokens = [TOKEN, instance_token(TOKEN, "0-0")]
    halves = [[token[:16][::-1], token[16:][::-1]] for token in tokens]
    cluster, own = agent.call(order.address, halves).json()
    assert cluster == 0
    assert own > 0
    end(agent, order)
    agent.store.delete(function.path)


def test_a_process_for_a_function_that_is_changed_or_deleted_goes(agent: AgentProcess) -> None:
    function = deploy(agent, "changing")
    end(agent, served(agent, function, "2-0")[0])
    pid = parked(agent, function)
    digest, payload = handler_archive("def handle(event, context): return 'new'\n")
    agent.bundles.put(digest, payload)
    changed = replace(function, code_digest=digest, generation=2)
    agent.deploy(changed)
    eventually(lambda: gone(pid))
    order, _ = served(agent, changed, "2-1")
    assert agent.call(order.address).body == b"new"
    end(agent, order)
    pid = parked(agent, changed, 2)
    agent.store.delete(changed.path)
    eventually(lambda: gone(pid))


def test_one_that_was_killed_is_not_missed(agent: AgentProcess) -> None:
    function = deploy(agent, "killed")
    end(agent, served(agent, function, "3-0")[0])
    pid = parked(agent, function)
    os.kill(pid, signal.SIGKILL)
    order, _ = served(agent, function, "3-1")
    assert agent.instance("3-1", "serving").pid != pid
    end(agent, order)
    agent.store.delete(function.path)


def test_a_model_is_parked_with_its_function_and_takes_the_next_start(
    agent: AgentProcess, tmp_path: Path
) -> None:
    folder = tiny_model.write_llama(tmp_path / "llama")
    answer = agent.http("POST", "/resolve", encode(ResolveRequest(f"file://{folder}")))
    ref = decode(CheckpointRef, answer.body)
    function = FunctionRecord("chat", "openfaas-fn", "chat:latest", task="chat", checkpoint=ref)
    agent.deploy(function)
    body = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 8}
    answers = []
    for number in range(2):
        order = agent.assign(f"4-{number}", function)
        answers.append(agent.call(order.address, body).json()["choices"])
        agent.instance(order.instance_id, "serving")
        end(agent, order)
        eventually(
            lambda: "is ready for the next" in "".join(t for _, t in texts(agent, function)), 30
        )
    assert answers[0] == answers[1]
    log = [text for who, text in texts(agent, function) if who == "4-1"]
    assert any("took parked worker" in text for text in log)
    assert any("made from its template" in text for text in log)


def test_when_the_agent_ends_so_do_they(tmp_path: Path) -> None:
    running = AgentProcess(tmp_path / "state")
    running.ready()
    function = deploy(running, "last")
    end(running, served(running, function, "5-0")[0])
    pid = parked(running, function)
    assert running.stop() == 0
    assert gone(pid)
    assert not list((tmp_path / "state/run/instances").iterdir())
    running.close()
