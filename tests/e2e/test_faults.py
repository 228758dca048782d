"""kill -9 of every process, restarts, and what survives them."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import web
from harness.stack import Stack, wait_until
from stoker.native import CHUNK_BYTES

BUCKET = "models"


def test_what_a_killed_worker_was_asked_is_asked_of_another(stack: Stack, chat: str) -> None:
    stack.chat(chat, "Hi", max_tokens=1)
    (instance,) = (i for i in stack.instances(chat) if i["state"] == "serving")
    answers: list[web.Answer] = []
    caller = threading.Thread(
        target=lambda: answers.append(stack.chat(chat, "Tell me a story.", max_tokens=40))
    )
    caller.start()
    wait_until(lambda: stack.instances(chat)[0]["in_flight"] == 1, "the request is in flight")
    os.kill(int(instance["pid"]), signal.SIGKILL)
    caller.join(30)
    (answer,) = answers
    assert answer.status == 200
    assert answer.json()["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize(
    "module", ["stoker.gateway.main", "stoker.placement.main", "stoker.runtime.agent_main"]
)
def test_a_killed_process_comes_back_and_no_function_is_lost(
    stack: Stack, chat: str, module: str
) -> None:
    before = {f["name"] for f in stack.system("GET", "/system/functions").json()}
    killed = stack.process_of(module)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: killed not in stack.descendants(), f"{module} is gone")

    def answered() -> bool:
        try:
            return stack.chat(chat, "Hi", max_tokens=1).status == 200
        except OSError:
            return False

    wait_until(answered, f"a call succeeds after kill -9 of {module}", 40)
    assert {f["name"] for f in stack.system("GET", "/system/functions").json()} == before


def test_after_kill_9_of_the_agent_the_weights_are_in_memory_but_for_a_chunk_that_was_damaged(
    stack: Stack, chat: str
) -> None:
    before = stack.chat(chat, "Hi", max_tokens=3, temperature=0).json()["choices"]
    wait_until(lambda: is_noted(stack), "the agent has noted what the pool holds")

    kill_agent(stack)
    wait_until(lambda: resident(stack)[0]["dram_resident_bytes"] > 200_000_000, "it was adopted")
    warm = stack.chat(chat, "Hi", max_tokens=3, temperature=0)
    assert warm.json()["choices"][0]["message"] == before[0]["message"]
    assert (warm.stages["fetch"], warm.stages["load"]) == (0, 0)

    kill_agent(stack, lambda: damage_pool(stack))
    wait_until(lambda: resident(stack)[0]["dram_resident_bytes"] > 200_000_000, "it was mended")
    mended = stack.chat(chat, "Hi", max_tokens=3, temperature=0)
    assert mended.json()["choices"][0]["message"] == before[0]["message"]
    assert "pool_chunk_corrupt" in (stack.state / "logs" / "agent.log").read_text()


def chunks_of_the_largest(stack: Stack) -> list[int]:
    """Where the pool holds the function's checkpoint; those of other tests are small."""
    notes = [json.loads(path.read_text()) for path in (stack.state / "ssd").glob("*/resident")]
    return max((note["chunks"] for note in notes), key=len, default=[])


def is_noted(stack: Stack) -> bool:
    return len(chunks_of_the_largest(stack)) > 3


def kill_agent(stack: Stack, then: Callable[[], None] = lambda: None) -> None:
    killed = stack.process_of("stoker.runtime.agent_main")
    os.kill(killed, signal.SIGKILL)
    then()
    wait_until(lambda: killed not in stack.descendants(), "the agent is gone")
    wait_until(lambda: stack.system("GET", "/system/nodes").json() == [], "its node is gone")
    wait_until(stack.is_ready, "a new agent is ready", 40)


def damage_pool(stack: Stack) -> None:
    """Flip a bit of a chunk, in the memory file that the supervisor keeps for the agents."""
    assert stack.process is not None
    descriptors = Path(f"/proc/{stack.process.pid}/fd").iterdir()
    (memory,) = (d for d in descriptors if "memfd:stoker-pool" in _target(d))
    with memory.open("r+b", buffering=0) as file:
        file.seek(chunks_of_the_largest(stack)[3] * CHUNK_BYTES + 12345)
        (octet,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([octet ^ 1]))


def _target(descriptor: Path) -> str:
    """What it refers to; nothing if it has been closed since it was listed."""
    try:
        return str(descriptor.readlink())
    except FileNotFoundError:
        return ""


def test_stopping_leaves_no_process_and_a_second_up_finds_functions_and_a_warm_ssd(
    tmp_path: Path, variables: dict[str, str], stack: Stack
) -> None:
    # Else the weights might be in memory before they are asked for.
    variables = variables | {"STOKER_PREFETCH": "off"}
    first = Stack(tmp_path / "state", variables, ("--dram-bytes", "512MiB")).start()
    annotations = {"stoker/model": f"s3://{BUCKET}/smollm2-135m-instruct"}
    assert first.deploy("chat", annotations).status == 202
    cold = first.chat("chat", "Hi", max_tokens=1)
    assert cold.stages["fetch"] > 0
    wait_until(
        lambda: any(n["ssd_resident_bytes"] > 200_000_000 for n in resident(first)),
        "the SSD holds the checkpoint",
    )
    assert first.stop() == 0
    assert first.descendants() == []

    second = Stack(tmp_path / "state", variables, ("--dram-bytes", "512MiB")).start()
    try:
        (before,) = resident(second)
        assert before["dram_resident_bytes"] == 0
        assert before["ssd_resident_bytes"] > 200_000_000
        warm = second.chat("chat", "Hi", max_tokens=1)
        assert warm.status == 200
        assert warm.stages["fetch"] == 0
        wait_until(
            lambda: resident(second)[0]["dram_resident_bytes"] > 200_000_000,
            "the node says that memory holds the checkpoint",
        )
    finally:
        second.stop(signal.SIGINT)
    assert second.descendants() == []


def resident(stack: Stack) -> list[dict[str, int]]:
    return list(stack.system("GET", "/system/nodes").json())


def test_kill_9_of_the_supervisor_leaves_no_process(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    alone = Stack(tmp_path / "state", variables, ("--dram-bytes", "64MiB")).start()
    assert len(alone.descendants()) >= 4
    assert alone.process is not None
    alone.process.kill()
    alone.process.wait(10)
    wait_until(lambda: alone.descendants() == [], "every process is gone", 15)
