from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import psutil
import pytest

from harness.fake_zygote import fake_command, start
from stoker.placement.errors import NoCapacity, StartFailed
from stoker.runtime import zygote_client
from stoker.runtime.zygote_client import ZygoteClient, program


@asynccontextmanager
async def client(tmp_path: Path, behaviour: str = "good") -> AsyncIterator[ZygoteClient]:
    variables = {"AWS_SECRET_ACCESS_KEY": "never", "STOKER_CLUSTER_TOKEN_FILE": "never"}
    made = ZygoteClient(
        program(tmp_path, os.environ | variables, fake_command(tmp_path, behaviour)),
        ready_seconds=0.5 if behaviour == "silent" else 10.0,
    )
    running = asyncio.ensure_future(made.run())
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.wait({running})


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def dies(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while alive(pid) and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    return not alive(pid)


def seen(tmp_path: Path) -> dict[str, object]:
    content: dict[str, object] = orjson.loads((tmp_path / "seen.json").read_bytes())
    return content


def test_a_worker_inherits_descriptors_and_its_exit_is_told(tmp_path: Path) -> None:
    async def run() -> tuple[bytes, int]:
        read_end, write_end = os.pipe()
        async with client(tmp_path) as zygote:
            worker = await zygote.start(start(), [write_end])
            os.close(write_end)
            inherited = os.read(read_end, 100)
            os.close(read_end)
            worker.signal(signal.SIGTERM)
            return inherited, await asyncio.wait_for(worker.exited, 5)

    assert asyncio.run(run()) == (b"inherited", -signal.SIGTERM)


def test_the_zygote_gets_none_of_the_agents_secrets(tmp_path: Path) -> None:
    async def run() -> bool:
        async with client(tmp_path) as zygote:
            await zygote.start(start(), [2])
            return zygote.ready

    assert asyncio.run(run())
    environment = seen(tmp_path)["environment"]
    assert isinstance(environment, dict)
    assert not [name for name in environment if name.startswith(("AWS_", "STOKER_"))]
    assert environment["OMP_WAIT_POLICY"] == "passive"


def test_a_dead_zygote_ends_its_workers_and_is_started_anew(tmp_path: Path) -> None:
    async def run() -> tuple[int, bool]:
        async with client(tmp_path) as zygote:
            first = await zygote.start(start("1-1"), [2])
            os.kill(int(str(seen(tmp_path)["pid"])), signal.SIGKILL)
            status = await asyncio.wait_for(first.exited, 5)
            second = await zygote.start(start("1-2"), [2])
            return status, second.pid != first.pid and await dies(first.pid)

    status, replaced = asyncio.run(run())
    assert status == -signal.SIGKILL
    assert replaced


def test_workers_end_with_the_client(tmp_path: Path) -> None:
    async def run() -> int:
        async with client(tmp_path) as zygote:
            return (await zygote.start(start(), [2])).pid

    pid = asyncio.run(run())
    assert asyncio.run(dies(pid))


@pytest.mark.parametrize(
    ("behaviour", "expected", "cause"),
    [
        ("silent", StartFailed, "to be ready within 0.5 s"),
        ("dies", StartFailed, "found that it died"),
        ("mute", StartFailed, "to fork 1-1 within 0.3 s"),
        ("refuses", NoCapacity, "It is full"),
    ],
)
def test_a_start_that_cannot_be_is_a_typed_error(
    tmp_path: Path,
    behaviour: str,
    expected: type[Exception],
    cause: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if behaviour == "mute":
        monkeypatch.setattr(zygote_client, "FORK_SECONDS_MAXIMUM", 0.3)

    async def run() -> None:
        async with client(tmp_path, behaviour) as zygote:
            if behaviour == "mute":
                while not zygote.ready:
                    await asyncio.sleep(0.01)
            await zygote.start(start(), [2])

    with pytest.raises(expected, match=cause):
        asyncio.run(run())


def test_a_fork_that_nobody_waits_for_any_more_is_killed(tmp_path: Path) -> None:
    async def run() -> bool:
        async with client(tmp_path) as zygote:
            while not zygote.ready:
                await asyncio.sleep(0.01)
            starting = asyncio.ensure_future(zygote.start(start(), [2]))
            while not (forked := zygote._forks):
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert list(forked) == ["1-1"]
            starting.cancel()
            await asyncio.wait({starting})
            fake = psutil.Process(int(str(seen(tmp_path)["pid"])))
            assert fake.children() == []  # the instance's folder may go
            kept = await zygote.start(start("1-2"), [2])
            return [child.pid for child in fake.children()] == [kept.pid]

    assert asyncio.run(run())


def test_nothing_that_a_worker_forked_outlives_it_whatever_group_it_is_in() -> None:
    script = (
        "import os, subprocess as s\n"
        "child = s.Popen(['sleep', '60'], process_group=0, stdout=s.DEVNULL)\n"
        "os.write(1, b'%d %d' % (child.pid, os.getpid()))\n"
    )
    leader = subprocess.run(
        [sys.executable, "-c", script], start_new_session=True, stdout=subprocess.PIPE, check=True
    )
    child, worker = map(int, leader.stdout.split())
    assert psutil.pid_exists(child)

    zygote_client.kill_session(worker)

    deadline = time.monotonic() + 5.0
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
