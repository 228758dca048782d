"""Start and stop, again and again: nothing may be left of an instance but its log."""

from __future__ import annotations

import contextlib
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from harness import tiny_model
from harness.agent import NODE, AgentProcess, handler_archive
from harness.stack import wait_until
from stoker.native import CHUNK_BYTES
from stoker.placement.records import CheckpointRef, FunctionRecord, ResolveRequest, decode, encode
from stoker.runtime import cgroup_trees
from stoker.runtime.parked import IDLE_SECONDS

Rounds = Callable[[int, int], int]
POOL_CHUNKS = 2
WIDTH = 576  # a model of more than one chunk
WARM_UP = 10
SECONDS_MAXIMUM = 150.0  # nothing here is about time
GROWTH_BYTES_MAXIMUM = 24 << 20
ECHO = "def handle(event, context):\n    return event.body\n"


@dataclass(frozen=True)
class Held:
    """What a node holds while no instance lives. Descriptors are counted by what they are."""

    processes: int
    agent_descriptors: Counter[str]
    zygote_descriptors: Counter[str]
    listening: int
    zygote_threads: int
    shared_memory: str
    mounts: int
    groups: tuple[str, ...]
    folders: tuple[str, ...]


def look(agent: AgentProcess) -> Held:
    process = psutil.Process(agent.process.pid)
    (zygote,) = process.children()
    listening = [c for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    trees = cgroup_trees.find(claim=False)._hierarchies
    return Held(
        processes=len(process.children(recursive=True)),
        agent_descriptors=descriptors(process.pid),
        zygote_descriptors=descriptors(zygote.pid),
        listening=len(listening),
        zygote_threads=zygote.num_threads(),
        shared_memory=shared_memory(process.pid),
        mounts=len(Path("/proc/self/mountinfo").read_text().splitlines()),
        groups=unnumbered(p for t in trees for p in t.folder.glob(f"stoker-{process.pid}-*")),
        folders=unnumbered((agent.state / "run" / "instances").iterdir()),
    )


def unnumbered(paths: Iterable[Path]) -> tuple[str, ...]:
    """Their names; which processes are parked changes, but not how many."""
    return tuple(sorted(re.sub(r"parked-\d+", "parked", path.name) for path in paths))


def descriptors(pid: int) -> Counter[str]:
    kinds: Counter[str] = Counter()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(path.readlink())
        except FileNotFoundError:
            continue
        kinds[target.partition(":")[0] if target[0] != "/" else target.partition(" ")[0]] += 1
    return kinds


def shared_memory(pid: int) -> str:
    """What the process has mapped and touched of memory files: the pool, for an agent."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(line for line in status.splitlines() if line.startswith("RssShmem"))


def private_bytes(agent: AgentProcess) -> tuple[int, int]:
    """Of the agent and of its zygote."""
    process = psutil.Process(agent.process.pid)
    (zygote,) = process.children()
    infos = (process.memory_info(), zygote.memory_info())
    return (infos[0].rss - infos[0].shared, infos[1].rss - infos[1].shared)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    pool = {"STOKER_DRAM_BYTES": str(POOL_CHUNKS * CHUNK_BYTES)}
    running = AgentProcess(tmp_path / "state", pool)
    try:
        running.wait_for(lambda s: NODE in s.nodes and s.nodes[NODE].zygote_ready, SECONDS_MAXIMUM)
        yield running
    finally:
        running.close()


def model(agent: AgentProcess, name: str, folder: Path) -> FunctionRecord:
    answer = agent.http("POST", "/resolve", encode(ResolveRequest(f"file://{folder}")))
    assert answer.status == 200, answer.body
    ref = decode(CheckpointRef, answer.body)
    function = FunctionRecord(name, "openfaas-fn", f"{name}:latest", task="chat", checkpoint=ref)
    agent.deploy(function)
    return function


def live_once(agent: AgentProcess, function: FunctionRecord, instance_id: str) -> None:
    order = agent.assign(instance_id, function)
    body: object = b"hello"
    if function.checkpoint is not None:
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    answer = agent.call(order.address, body)
    assert answer.status == 200, answer.body
    agent.instance(instance_id, "serving", SECONDS_MAXIMUM)
    agent.revoke(order)
    agent.wait_for(lambda s: instance_id not in s.instances, SECONDS_MAXIMUM)


def stop_early(
    agent: AgentProcess, function: FunctionRecord, instance_id: str, after_seconds: float
) -> None:
    """Revokes the order while it is carried out, at whatever step that is."""
    order = agent.assign(instance_id, function)
    agent.wait_for(
        lambda s: instance_id in s.instances and order.address not in s.nodes[NODE].spare_addresses
    )
    time.sleep(after_seconds)
    agent.revoke(order)
    agent.wait_for(lambda s: instance_id not in s.instances, SECONDS_MAXIMUM)


def wait_until_parked(agent: AgentProcess, functions: Sequence[FunctionRecord]) -> None:
    """Until a process is ready for the next start of each."""

    def ready(function: FunctionRecord) -> bool:
        lines = agent.http("GET", f"/logs?function={function.key}").body.decode().splitlines()
        texts = [json.loads(line)["text"] for line in lines]
        last = max(n for n, t in enumerate(texts) if " worker pid " in t or "for the next" in t)
        return "is ready for the next start" in texts[last]

    wait_until(lambda: all(map(ready, functions)), "a process is parked for each", 60)


@pytest.mark.timeout(3600)
def test_what_starts_and_stops_leaves_nothing(
    agent: AgentProcess, tmp_path: Path, rounds: Rounds
) -> None:
    digest, payload = handler_archive(ECHO)
    agent.bundles.put(digest, payload)
    echo = FunctionRecord("echo", "openfaas-fn", "echo:latest", code_digest=digest)
    agent.deploy(echo)
    functions = (echo, model(agent, "chat", tiny_model.write_llama(tmp_path / "tiny")))
    for cycle in range(WARM_UP):
        live_once(agent, functions[cycle % 2], f"1-{cycle}")
    wait_until_parked(agent, functions)
    before, private_before = look(agent), private_bytes(agent)

    cycles = rounds(30, 1000)
    chance = random.Random(7)
    for cycle in range(cycles):
        function = functions[cycle % 2]
        if cycle % 3 == 2:
            stop_early(agent, function, f"2-{cycle}", chance.uniform(0.0, 0.05))
        else:
            live_once(agent, function, f"2-{cycle}")
        if cycle % 10 == 9:
            time.sleep(IDLE_SECONDS + 1.0)  # a process is parked, for a later cycle

    for function in functions:
        live_once(agent, function, f"3-{function.name}")
    wait_until_parked(agent, functions)

    with contextlib.suppress(AssertionError):  # the comparison below shows the difference
        wait_until(lambda: look(agent) == before, "all is as before", 10)
    assert look(agent) == before
    growth = [b - a for a, b in zip(private_before, private_bytes(agent), strict=True)]
    print(
        f"{cycles} cycles: {before.processes} child, {before.agent_descriptors.total()} and "
        f"{before.zygote_descriptors.total()} descriptors, {before.listening} listening sockets as "
        f"before; private bytes of agent and zygote grew by {growth}"
    )
    assert max(growth) < GROWTH_BYTES_MAXIMUM
    # Nothing pins the pool: a model that needs all of it takes the place of the first.
    large = tiny_model.write_llama(tmp_path / "large", width=WIDTH)
    assert (large / "model.safetensors").stat().st_size > (POOL_CHUNKS - 1) * CHUNK_BYTES
    live_once(agent, model(agent, "large", large), "3-1")
