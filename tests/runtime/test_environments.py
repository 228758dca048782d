"""Environments built by the real pip, from packages made here."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import psutil
import pytest

from harness.packages import (
    BROKEN_BACKEND,
    ENDLESS_BACKEND,
    pip_settings,
    write_sdist,
    write_wheel,
)
from harness.waiting import eventually, gone
from stoker.placement.errors import StartFailed, StokerError, StorageFull
from stoker.runtime import environment_build, environments
from stoker.runtime.environments import Environment, Environments

SECRETS = {"AWS_SECRET_ACCESS_KEY": "never", "STOKER_CLUSTER_TOKEN_FILE": "never"}


class World:
    """One node's environments, a folder of packages, and a clock that is moved by hand."""

    def __init__(self, tmp_path: Path) -> None:
        self.packages = tmp_path / "packages"
        self.packages.mkdir(exist_ok=True)
        self.directory = tmp_path / "environments"
        self.now = 0.0
        self.lines: list[str] = []
        self._code = tmp_path / "code"
        self.variables = dict(os.environ) | SECRETS | pip_settings(self.packages)
        self.environments = self.started()

    def started(self) -> Environments:
        """As at the start of an agent, whose zygote has imported one thing more than workers do."""

        async def imported() -> list[str]:
            return ["sys", "yarl"]

        return Environments(self.directory, self.variables, imported, clock=lambda: self.now)

    async def find(self, requirements: str) -> Environment | None:
        self._code.mkdir(exist_ok=True)
        (self._code / "requirements.txt").write_text(requirements)
        return await self.environments.find(self._code)

    async def wanted(self, requirements: str) -> Environment:
        found = await self.find(requirements)
        assert found is not None
        return found

    async def ready(self, requirements: str) -> bool:
        return await self.environments.ready(await self.wanted(requirements), self.lines.extend)

    async def refused(self, requirements: str) -> StokerError:
        with pytest.raises(StokerError) as caught:
            await self.ready(requirements)
        return caught.value

    def folders(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def run(story: Coroutine[Any, Any, object]) -> None:
    asyncio.run(story)


SAYS_WHAT_IT_IMPORTS = (
    "import widget, gadget, orjson, torch, stoker; "
    "print(widget.VERSION, gadget.VERSION, orjson.__file__)"
)
ENTERS = (
    "import shutil, sys; from pathlib import Path; "
    "from stoker.runtime.environment_entry import enter; "
)


def said_by(python: str | Path, code: str) -> str:
    ran = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return ran.stdout.strip()


def backend_pids(begun: Path) -> list[int]:
    """The build's process and the one that it started, once they run."""
    eventually(begun.exists, 30.0)
    return [int(pid) for pid in begun.read_text().split()]


def test_packages_are_installed_once_and_lie_over_the_nodes_own(world: World) -> None:
    write_wheel(world.packages, "widget", "1.0", needs=["gadget", "orjson"])
    write_wheel(world.packages, "gadget", "2.0")

    async def story() -> None:
        first = await world.wanted("Widget == 1.0  # mine\n")
        assert await world.environments.ready(first, world.lines.extend)
        assert not await world.ready("widget==1.0")
        assert (await world.wanted("widget==1.0")).digest == first.digest
        assert world.folders() == [first.digest]
        own = said_by(sys.executable, "import orjson, torch; print(orjson.__file__)")
        python = first.folder / "bin" / "python"
        assert said_by(python, SAYS_WHAT_IT_IMPORTS) == f"1.0 2.0 {own}"
        entered = f"{ENTERS}enter(Path({str(first.folder)!r})); {SAYS_WHAT_IT_IMPORTS}"
        assert said_by(Path(sys.executable), entered) == f"1.0 2.0 {own}"
        said = said_by(
            Path(sys.executable), f"{entered}; print(sys.prefix, shutil.which('widget'))"
        )
        assert said.splitlines()[1] == f"{first.folder} {first.folder}/bin/widget"
        program = subprocess.run([first.folder / "bin/widget"], capture_output=True, check=True)
        assert program.stdout == b"1.0\n"
        assert not (first.folder / "tmp").exists()

    run(story())


def test_code_that_asks_for_nothing_new_gets_no_environment(world: World, tmp_path: Path) -> None:
    async def story() -> None:
        assert await world.environments.find(tmp_path) is None
        for text in ("", "# nothing\n", "pytest>=9\norjson", 'widget; python_version < "3"\n'):
            assert await world.find(text) is None

    run(story())


def test_requirements_that_are_refused_fail_the_start_with_their_line(world: World) -> None:
    with pytest.raises(StartFailed, match=r"in line 2 of requirements\.txt"):
        run(world.find("widget\n-r more.txt\n"))


def test_what_a_worker_imports_keeps_its_version(world: World) -> None:
    write_wheel(world.packages, "orjson", "0.0.1")
    write_wheel(world.packages, "yarl", "0.0.1")
    write_wheel(world.packages, "boto3", "0.0.1")

    async def story() -> None:
        error = await world.refused("orjson==0.0.1")
        assert isinstance(error, StartFailed)
        assert "conflicting dependencies" in error.cause
        assert "The user requested (constraint) orjson==" in error.cause
        assert world.folders() == []
        assert "conflicting dependencies" in (await world.refused("yarl==0.0.1")).cause
        # What only the agent uses is the function's to choose.
        assert await world.ready("boto3==0.0.1")
        folder = (await world.wanted("boto3==0.0.1")).folder
        shown = "import boto3; print(boto3.VERSION)"
        assert said_by(folder / "bin" / "python", shown) == "0.0.1"
        assert said_by(sys.executable, f"{ENTERS}enter(Path({str(folder)!r})); {shown}") == "0.0.1"

    run(story())


def test_a_build_that_fails_is_told_with_pips_own_lines(world: World) -> None:
    write_sdist(world.packages, "broken", "1.0", BROKEN_BACKEND)

    async def story() -> None:
        error = await world.refused("broken")
        assert isinstance(error, StartFailed)
        assert "found exit code 1" in error.cause
        assert "fatal error: widget.h: No such file or directory" in error.cause
        output = error.details["output"]
        assert world.lines[-len(output) :] == output
        text = "\n".join(output)
        assert "no compiler for https://****@host/" in text
        assert "\x1b" not in text
        assert world.folders() == []

    run(story())


def test_a_build_sees_pips_settings_and_no_secret_of_the_agent(world: World) -> None:
    write_sdist(world.packages, "broken", "1.0", BROKEN_BACKEND)
    world.variables["PIP_TARGET"] = str(world.directory / "elsewhere")
    world.variables["PIP_RETRIES"] = "2"

    async def story() -> None:
        folder = (await world.wanted("broken")).folder
        await world.refused("broken")
        text = "\n".join(world.lines)
        names = ",".join(re.findall(r"names:(\S+)", text)).split(",")
        assert {"PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_RETRIES"} <= set(names)
        assert not [name for name in names if name.startswith(("AWS_", "STOKER_"))]
        assert "PIP_TARGET" not in names
        assert f"home:{folder}/tmp" in text

    run(story())


def test_a_failed_build_is_tried_again_after_a_growing_while_and_not_before(world: World) -> None:
    async def story() -> None:
        error = await world.refused("widget")
        assert error.retry_after_seconds == environments.RETRY_SECONDS_MINIMUM
        write_wheel(world.packages, "widget", "1.0", needs=["absent"])
        world.now = 9.0
        again = await world.refused("widget")
        assert again.cause == error.cause
        assert again.retry_after_seconds == 1.0
        world.now = 10.0
        other = await world.refused("widget")
        assert "absent" in other.cause
        assert other.retry_after_seconds == 2 * environments.RETRY_SECONDS_MINIMUM
        write_wheel(world.packages, "absent", "1.0")
        world.now = 30.0
        assert await world.ready("widget")

    run(story())


def test_all_who_want_one_environment_wait_for_one_build(world: World, tmp_path: Path) -> None:
    once = f"import os; os.mkdir(r'{tmp_path}/built')\n"
    write_sdist(world.packages, "broken", "1.0", once + BROKEN_BACKEND)

    async def story() -> None:
        wanted = await world.wanted("broken")
        waiting = [
            asyncio.ensure_future(world.environments.ready(wanted, world.lines.extend))
            for _ in range(3)
        ]
        await asyncio.sleep(0.1)
        waiting[0].cancel()  # whoever leaves takes nothing from the others
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(each) for each in results[1:]] == [StartFailed, StartFailed]
        assert "fatal error" in str(results[1])
        assert (tmp_path / "built").exists()

    run(story())


def exceed(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes what a running build has taken too much."""
    if bound == "seconds":
        later = time.monotonic() + environment_build.BUILD_SECONDS_MAXIMUM + 1.0
        monkeypatch.setattr(environment_build, "time", SimpleNamespace(monotonic=lambda: later))
    elif bound == "output":
        monkeypatch.setattr(environment_build, "OUTPUT_BYTES_MAXIMUM", 1)
    else:
        monkeypatch.setattr(environment_build, "FREE_BYTES_MINIMUM", 1 << 60)


@pytest.mark.parametrize(
    ("bound", "error", "cause"),
    [
        ("seconds", StartFailed, "within 540 s"),
        ("output", StartFailed, "and 1 bytes of output"),
        ("disk", StorageFull, "bytes to stay free"),
    ],
)
def test_a_build_has_bounds_and_nothing_of_it_outlives_them(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bound: str,
    error: type[StokerError],
    cause: str,
) -> None:
    begun = tmp_path / "begun"
    write_sdist(world.packages, "endless", "1.0", ENDLESS_BACKEND.format(begun=begun))

    async def story() -> None:
        waiting = asyncio.ensure_future(world.refused("endless"))
        pids = await asyncio.to_thread(backend_pids, begun)
        exceed(bound, monkeypatch)
        found = await asyncio.wait_for(waiting, 30)
        assert isinstance(found, error)
        assert cause in found.cause
        eventually(lambda: all(gone(pid) for pid in pids))
        assert world.folders() == []

    run(story())


def test_a_full_disk_begins_no_build(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment_build, "FREE_BYTES_MINIMUM", 1 << 60)

    async def story() -> None:
        assert isinstance(await world.refused("widget"), StorageFull)
        assert world.folders() == []

    run(story())


def test_a_stop_in_mid_build_leaves_no_process_and_the_next_start_no_folder(
    world: World, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    write_sdist(world.packages, "endless", "1.0", ENDLESS_BACKEND.format(begun=begun))

    async def story() -> None:
        waiting = asyncio.ensure_future(world.ready("endless"))
        pids = await asyncio.to_thread(backend_pids, begun)
        await world.environments.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        eventually(lambda: all(gone(pid) for pid in pids))

    run(story())
    assert len(world.folders()) == 1
    world.started()
    assert world.folders() == []


KILLED = """
import asyncio, os, sys
from pathlib import Path
from stoker.runtime.environments import Environments

async def nothing():
    return []

async def main():
    environments = Environments(Path(sys.argv[1]), os.environ, nothing)
    await environments.ready(await environments.find(Path(sys.argv[2])), print)

asyncio.run(main())
"""


def test_kill_9_in_mid_build_ends_pip_and_leaves_nothing_half_made(
    world: World, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    write_sdist(world.packages, "endless", "1.0", ENDLESS_BACKEND.format(begun=begun))
    asyncio.run(world.find("endless"))
    code = tmp_path / "code"
    agent = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(world.directory), str(code)], env=world.variables
    )
    try:
        pids = backend_pids(begun)
        pids += [parent.pid for parent in psutil.Process(pids[0]).parents()[:1]]
        assert agent.pid not in pids
    finally:
        agent.kill()
        agent.wait(10)
    eventually(lambda: all(gone(pid) for pid in pids))
    (folder,) = world.folders()
    assert not (world.directory / folder / "complete").exists()

    (world.packages / "endless-1.0.tar.gz").unlink()
    write_wheel(world.packages, "endless", "1.0")
    after = World(tmp_path)
    assert after.folders() == []
    assert asyncio.run(after.ready("endless"))
    assert after.folders() == [folder]


def complete(world: World, name: str, byte_count: int, used_at: float) -> None:
    marker = world.directory / name / "complete"
    marker.parent.mkdir()
    marker.write_bytes(orjson.dumps({"bytes": byte_count}))
    os.utime(marker, (used_at, used_at))


@pytest.mark.parametrize(("bytes_maximum", "kept_maximum"), [(25, 64), (1 << 30, 2)])
def test_environments_that_nobody_uses_go_the_oldest_first_when_there_is_no_room(
    world: World, monkeypatch: pytest.MonkeyPatch, bytes_maximum: int, kept_maximum: int
) -> None:
    monkeypatch.setattr(environments, "BYTES_MAXIMUM", bytes_maximum)
    monkeypatch.setattr(environments, "KEPT_MAXIMUM", kept_maximum)
    now = time.time()
    for age, name in enumerate(("newest", "newer", "older", "oldest")):
        complete(world, name, 10, now - age)

    run(world.environments.trim({"oldest"}))

    assert world.folders() == ["newest", "oldest"]


def test_a_start_keeps_what_is_whole_and_removes_the_rest(world: World) -> None:
    complete(world, "whole", 1, 0.0)
    complete(world, ".removing-gone", 1, 0.0)
    (world.directory / "half" / "lib").mkdir(parents=True)

    world.started()

    assert world.folders() == ["whole"]
