"""What was deployed comes into memory before anybody calls it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import web
from harness.stack import Stack, wait_until

MODEL = "s3://models/ahead"
EMBED = {"stoker/model": MODEL, "stoker/task": "embed"}


@pytest.fixture
def idle(tmp_path: Path, variables: dict[str, str], models: Path) -> Iterator[Stack]:
    running = Stack(tmp_path / "state", variables, ("--dram-bytes", "512MiB")).start()
    running.run("model", "pack", str(models / "all-minilm-l6-v2"), "--out", MODEL)
    yield running
    running.stop()


def held(stack: Stack) -> list[dict[str, Any]]:
    (node,) = stack.system("GET", "/system/nodes").json()
    return [dict(resident) for resident in node["residents"]]


def whole(stack: Stack) -> bool:
    """Whether memory and disk hold the same, and that is all that is there."""
    found = held(stack)
    return bool(found) and all(0 < r["dram_bytes"] == r["ssd_bytes"] for r in found)


def test_a_deployed_and_never_called_model_starts_from_memory(idle: Stack) -> None:
    assert idle.deploy("embed", EMBED).status == 202
    wait_until(lambda: whole(idle), "the model is in memory and on the disk", 30)
    assert idle.instances("embed") == []

    body = {"model": "embed", "input": "one"}
    first = web.call("POST", f"{idle.url}/v1/embeddings", body, web.bearer(idle.password))

    assert first.status == 200
    assert (first.stages["fetch"], first.stages["load"]) == (0, 0)
    assert first.stages["init"] > 0


def test_what_an_operator_evicted_stays_away(idle: Stack) -> None:
    assert idle.deploy("embed", EMBED).status == 202
    wait_until(lambda: whole(idle), "the model is in memory and on the disk", 30)
    idle.run("evict", "embed", "--disk")
    wait_until(lambda: not held(idle), "nothing is left", 10)
    # Long enough for the leader to say it several times.
    with pytest.raises(AssertionError):
        wait_until(lambda: held(idle), "it came back", 4)
