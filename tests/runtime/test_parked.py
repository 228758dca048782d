"""Processes that wait, whole but for their weights, for a start."""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import tiny_model
from harness.waiting import eventually
from harness.workers import (
    Resident,
    WorkerProcess,
    ZygoteProcess,
    children,
    resident,
    sandbox_levels,
    worker,
)
from stoker.native import Pool
from stoker.placement.records import FunctionRecord, Scaling
from stoker.placement.resources import Limits
from stoker.runtime import cgroup_trees
from stoker.runtime.cgroups import Group
from stoker.runtime.parked import PARKED_MAXIMUM

CHAT = FunctionRecord("chat", "ns", "image", task="chat", scaling=Scaling(concurrency=2))
BODY = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 12}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Resident:
    made = resident(tiny_model.write_llama(tmp_path / "llama"), Pool(64 << 20), tmp_path)
    made.read()
    return made


@pytest.fixture
def zygote() -> Iterator[ZygoteProcess]:
    made = ZygoteProcess()
    yield made
    made.close()


def text_of(running: WorkerProcess) -> str:
    text: str = json.loads(running.call("/v1/chat/completions", BODY)[1])["choices"][0]["message"][
        "content"
    ]
    return text


def parked_after_a_start(
    zygote: ZygoteProcess, checkpoint: Resident, work_dir: Path, function: FunctionRecord = CHAT
) -> tuple[int, str]:
    """Starts the function once; the pid of the process that is parked for it, and its answer."""
    before = children(zygote)
    with worker(zygote, function, work_dir, checkpoint=checkpoint) as running:
        text = text_of(running)
    eventually(lambda: children(zygote) - before, seconds=30)
    (pid,) = children(zygote) - before
    return pid, text


def start_until_taken(
    zygote: ZygoteProcess, checkpoint: Resident, folder: Path, pid: int
) -> tuple[str, bool]:
    """The answer of the process `pid`, which takes a start as soon as it has rehearsed."""
    for attempt in range(20):
        with worker(zygote, CHAT, folder / str(attempt), checkpoint=checkpoint) as running:
            if running.pid == pid:
                return text_of(running), running.status().from_template
        time.sleep(0.5)
    raise AssertionError(f"no start was taken by {pid}")


def test_a_start_is_taken_by_the_process_that_was_parked_for_it(
    zygote: ZygoteProcess, checkpoint: Resident, tmp_path: Path
) -> None:
    pid, text = parked_after_a_start(zygote, checkpoint, tmp_path / "first")
    assert start_until_taken(zygote, checkpoint, tmp_path, pid) == (text, True)


def test_a_function_of_another_make_does_not_get_it(
    zygote: ZygoteProcess, checkpoint: Resident, tmp_path: Path
) -> None:
    pid, _ = parked_after_a_start(zygote, checkpoint, tmp_path / "first")
    other = FunctionRecord("chat", "ns", "image", task="chat", scaling=Scaling(concurrency=3))
    with worker(zygote, other, tmp_path / "other", checkpoint=checkpoint) as running:
        assert running.pid != pid
    start_until_taken(zygote, checkpoint, tmp_path, pid)


def test_all_threads_of_a_parked_process_are_in_the_sandbox_and_then_in_the_group(
    zygote: ZygoteProcess, checkpoint: Resident, tmp_path: Path
) -> None:
    pid, _ = parked_after_a_start(zygote, checkpoint, tmp_path / "first")
    eventually(lambda: len(list(Path(f"/proc/{pid}/task").iterdir())) > 1, seconds=30)
    groups = cgroup_trees.find(claim=False)
    for attempt in range(20):
        group = groups.create(f"8-{attempt}", Limits())
        with worker(
            zygote,
            CHAT,
            tmp_path / str(attempt),
            checkpoint=checkpoint,
            groups=tuple(group.join_paths),
        ) as running:
            taken = running.pid == pid
            if taken:
                assert text_of(running)
                eventually(functools.partial(is_held, pid, group), seconds=10)
        group.remove()
        if taken:
            return
        time.sleep(0.5)
    raise AssertionError(f"no start was taken by {pid}")


def is_held(pid: int, group: Group) -> bool:
    """Whether every thread is in every group; each must be in the sandbox in any case."""
    threads = list(Path(f"/proc/{pid}/task").iterdir())
    assert len(threads) > 1
    for thread in threads:
        status = (thread / "status").read_text()
        assert "NoNewPrivs:\t1" in status
        assert f"CapEff:\t{0:016}" in status
        assert "seccomp" not in sandbox_levels() or "Seccomp:\t2" in status
    inside = [(thread / "cgroup").read_text() for thread in threads]
    return all(folder.name in text for folder in group.folders for text in inside)


def test_a_parked_process_that_died_is_not_missed(
    zygote: ZygoteProcess, checkpoint: Resident, tmp_path: Path
) -> None:
    pid, text = parked_after_a_start(zygote, checkpoint, tmp_path / "first")
    os.kill(pid, signal.SIGKILL)
    with worker(zygote, CHAT, tmp_path / "second", checkpoint=checkpoint) as running:
        assert running.pid != pid
        assert text_of(running) == text
    assert not Path(f"/proc/{pid}").exists()


def test_no_more_are_parked_than_the_maximum_and_none_outlives_the_zygote(
    zygote: ZygoteProcess, checkpoint: Resident, tmp_path: Path
) -> None:
    for concurrency in range(1, PARKED_MAXIMUM + 2):
        function = FunctionRecord(
            "chat", "ns", "image", task="chat", scaling=Scaling(concurrency=concurrency)
        )
        parked_after_a_start(zygote, checkpoint, tmp_path / str(concurrency), function)
    eventually(lambda: len(children(zygote)) == PARKED_MAXIMUM, seconds=10)
    parked = children(zygote)
    zygote.close()
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in parked):
        assert time.monotonic() < deadline
        time.sleep(0.01)
