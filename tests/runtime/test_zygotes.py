"""Which zygote serves whom, and for how long; the environments are there, the zygotes fakes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from harness.fake_zygote import fake_command, start
from harness.waiting import gone
from stoker.placement.errors import StartFailed
from stoker.runtime import zygotes
from stoker.runtime.environments import Environment, Environments
from stoker.runtime.zygote_client import ForkedWorker, ZygoteClient, program
from stoker.runtime.zygotes import Zygotes


class World:
    def __init__(self, tmp_path: Path, behaviour: str = "good") -> None:
        self.tmp = tmp_path
        self.behaviour = behaviour
        own = self.client("own")
        self.environments = Environments(tmp_path / "environments", {}, own.imported)
        self.zygotes = Zygotes(own, self.environments, self.client_of)
        self.names: dict[str, str] = {}
        self.count = 0

    def client(self, name: str, behaviour: str = "good") -> ZygoteClient:
        folder = self.tmp / name
        folder.mkdir(exist_ok=True)
        command = fake_command(self.tmp, behaviour)
        return ZygoteClient(program(folder, os.environ, command), ready_seconds=2.0)

    def client_of(self, wanted: Environment) -> ZygoteClient:
        return self.client(self.names[wanted.digest], self.behaviour)

    async def code(self, name: str) -> Path | None:
        """The folder of a function that wants the package `name`, which is there."""
        if name == "own":
            return None
        folder = self.tmp / "code" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "requirements.txt").write_text(f"{name}==1.0\n")
        wanted = await self.environments.find(folder)
        assert wanted is not None
        self.names[wanted.digest] = name
        wanted.folder.mkdir(exist_ok=True)
        wanted.complete_path.write_bytes(orjson.dumps({"bytes": 1}))
        return folder

    async def fork(self, name: str) -> ForkedWorker:
        """A worker for code that wants the package `name`."""
        self.count += 1
        async with self.zygotes.lease(await self.code(name), lambda lines: None) as zygote:
            worker = await zygote.start(start(f"1-{self.count}"), [2])
        assert isinstance(worker, ForkedWorker)
        return worker

    def zygote_pid(self, name: str) -> int:
        return int(orjson.loads((self.tmp / name / "seen.json").read_bytes())["pid"])


def in_world(
    tmp_path: Path, story: Callable[[World], Coroutine[Any, Any, None]], behaviour: str = "good"
) -> World:
    async def run() -> World:
        world = World(tmp_path, behaviour)
        running = asyncio.ensure_future(world.zygotes.run())
        try:
            await story(world)
        finally:
            running.cancel()
            await asyncio.wait({running})
        return world

    return asyncio.run(run())


def parent(worker: ForkedWorker) -> int:
    return int(psutil.Process(worker.pid).ppid())


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.01)


async def end(worker: ForkedWorker) -> None:
    worker.signal(signal.SIGKILL)
    await asyncio.wait_for(worker.exited, 5)


def test_functions_with_the_same_requirements_share_a_zygote_and_others_do_not(
    tmp_path: Path,
) -> None:
    async def story(world: World) -> None:
        own, first, second = [await world.fork(name) for name in ("own", "widget", "widget")]
        other = await world.fork("gadget")
        parents = [parent(worker) for worker in (own, first, second, other)]
        expected = [world.zygote_pid(name) for name in ("own", "widget", "widget", "gadget")]
        assert parents == expected
        assert len(set(parents)) == 3

    in_world(tmp_path, story)


def test_all_zygotes_and_workers_end_with_the_nodes_own(tmp_path: Path) -> None:
    pids = []

    async def story(world: World) -> None:
        for name in ("own", "widget"):
            worker = await world.fork(name)
            pids.extend((worker.pid, world.zygote_pid(name)))

    in_world(tmp_path, story)
    asyncio.run(until(lambda: all(gone(pid) for pid in pids)))


def test_a_zygote_stays_while_a_worker_lives_and_a_while_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zygotes, "IDLE_SECONDS", 0.3)

    async def story(world: World) -> None:
        first, second = await world.fork("widget"), await world.fork("widget")
        zygote = world.zygote_pid("widget")
        await end(first)
        await asyncio.sleep(0.5)
        assert not gone(zygote)
        await end(second)
        third = await world.fork("widget")
        assert parent(third) == zygote
        await asyncio.sleep(0.5)
        assert not gone(zygote)
        await end(third)
        await until(lambda: gone(zygote))
        fourth = await world.fork("widget")
        assert parent(fourth) == world.zygote_pid("widget") != zygote

    in_world(tmp_path, story)


def test_of_idle_zygotes_the_one_idle_for_longest_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zygotes, "IDLE_MAXIMUM", 1)

    async def story(world: World) -> None:
        busy = await world.fork("busy")
        for name in ("older", "newer"):
            await end(await world.fork(name))
        await until(lambda: gone(world.zygote_pid("older")))
        assert not gone(world.zygote_pid("newer"))
        assert not gone(world.zygote_pid("busy"))
        assert not busy.exited.done()

    in_world(tmp_path, story)


@pytest.mark.parametrize("behaviour", ["silent", "dies"])
def test_a_zygote_that_forks_nothing_fails_the_start_and_is_not_kept(
    tmp_path: Path, behaviour: str
) -> None:
    async def story(world: World) -> None:
        with pytest.raises(StartFailed):
            await world.fork("widget")
        zygote = world.zygote_pid("widget")
        await until(lambda: gone(zygote))
        await asyncio.sleep(0.3)  # longer than the pause before one is started anew
        assert world.zygote_pid("widget") == zygote
        assert not gone((await world.fork("own")).pid)

    in_world(tmp_path, story, behaviour)


def test_a_start_that_is_called_off_lets_its_zygote_go(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        starting = asyncio.ensure_future(world.fork("widget"))
        seen = tmp_path / "widget" / "seen.json"
        await until(lambda: seen.exists() and seen.stat().st_size > 0)
        starting.cancel()
        await asyncio.wait({starting})
        await until(lambda: gone(world.zygote_pid("widget")))

    in_world(tmp_path, story, "silent")


def test_a_worker_whose_environment_failed_tells_whoever_waits_for_it(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        folder = tmp_path / "code" / "refused"
        folder.mkdir(parents=True)
        (folder / "requirements.txt").write_text("-r more.txt\n")
        async with world.zygotes.lease(folder, lambda lines: None) as zygote:
            worker = await zygote.start(start("1-1"), [2])
        assert isinstance(worker, ForkedWorker)
        assert parent(worker) == world.zygote_pid("own")
        seen = orjson.loads((tmp_path / "own" / "start.json").read_bytes())
        assert "in line 1 of requirements.txt" in seen["failure"]["cause"]

    in_world(tmp_path, story)
