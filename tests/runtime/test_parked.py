"""Which processes are kept for a next start, and until when; the processes are fakes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from stoker.placement.errors import StartFailed
from stoker.placement.records import FunctionRecord
from stoker.runtime import parked, parked_worker
from stoker.runtime.cgroups import ControlGroups
from stoker.runtime.function_logs import FunctionLogs, LogQuery
from stoker.runtime.parked import PARKED_BYTES_MAXIMUM, PARKED_MAXIMUM, ParkedProcesses
from stoker.runtime.worker_start import CheckpointStart, ParkStart, WorkerStart, decode_start

FUNCTION = FunctionRecord("echo", "ns", "image", generation=2)
CHECKPOINT = CheckpointStart("/files", "/layout", (1, 2), 20, "digest")


class Process:
    """One that was forked to be parked."""

    def __init__(self, start: WorkerStart, descriptors: Sequence[int]) -> None:
        self.pid = 17
        self.start = start
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.control = socket.socket(fileno=os.dup(descriptors[0]))
        self._log = os.dup(descriptors[1])

    def say(self, **status: Any) -> None:
        self.control.send(orjson.dumps(status))

    def write(self, text: bytes) -> None:
        os.write(self._log, text)

    def signal(self, number: signal.Signals) -> None:
        if not self.exited.done():
            self.end(-number)

    def end(self, status: int) -> None:
        self.control.close()
        os.close(self._log)
        self.exited.set_result(status)


class World:
    """`behave` is what each process does at once."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        self.logs = FunctionLogs(tmp_path / "logs")
        self.forked: list[Process] = []
        self.behave: Callable[[Process], None] = lambda process: process.say(event="parked")
        groups = ControlGroups([], {})
        self.changes: list[tuple[str, ...]] = []
        self.processes = ParkedProcesses(
            self.zygote_for,
            groups,
            self.logs,
            tmp_path / "run",
            lambda: self.changes.append(self.processes.ready),
        )

    @asynccontextmanager
    async def zygote_for(
        self, code_dir: Path | None, log: Callable[[list[str]], None]
    ) -> AsyncIterator[World]:
        yield self

    async def start(self, start: WorkerStart | ParkStart, descriptors: Sequence[int]) -> Process:
        assert isinstance(start, ParkStart)
        process = Process(start.start, descriptors)
        self.forked.append(process)
        self.behave(process)
        return process

    def wish(self, function: FunctionRecord = FUNCTION, **fields: Any) -> None:
        code = self.folder / function.name
        code.mkdir(exist_ok=True)
        (code / "handler.py").touch()
        start = WorkerStart("1-1", function, "secret", 1, "/own", 5.0, str(code))
        self.processes.wish(replace(start, **fields))

    async def parked(self, function: FunctionRecord = FUNCTION, **fields: Any) -> Process:
        """One that waits for a start of this function."""
        self.wish(function, **fields)
        count = len(self.forked)
        await until(lambda: len(self.forked) > count)
        await until(lambda: self.texts(function)[-1:] and "ready" in self.texts(function)[-1])
        return self.forked[-1]

    def texts(self, function: FunctionRecord = FUNCTION) -> list[str]:
        lines = self.logs.open(LogQuery(function.key)).lines()
        return [orjson.loads(line)["text"] for line in lines]


async def until(holds: Callable[[], object]) -> None:
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never held")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parked, "IDLE_SECONDS", 0.02)
    monkeypatch.setattr(parked, "CLOSE_SECONDS_MAXIMUM", 0.2)
    monkeypatch.setattr(parked_worker, "PARK_SECONDS_MAXIMUM", 0.3)
    monkeypatch.setattr(parked_worker, "TAKE_SECONDS_MAXIMUM", 0.3)


def in_world(tmp_path: Path, story: Callable[[World], Coroutine[Any, Any, None]]) -> World:
    async def run() -> World:
        world = World(tmp_path)
        await story(world)
        await world.processes.close()
        assert all(process.exited.done() for process in world.forked)
        assert not list((tmp_path / "run/instances").glob("*"))
        return world

    return asyncio.run(run())


def named(name: str) -> FunctionRecord:
    return replace(FUNCTION, name=name)


def test_it_gets_nothing_of_the_instance_that_served_and_takes_one_start(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        function = replace(FUNCTION, task="chat")
        process = await world.parked(function, checkpoint=CHECKPOINT)
        assert process.start.token == ""
        assert process.start.checkpoint == replace(CHECKPOINT, chunks=())
        assert process.start.work_dir == str(tmp_path / "run/instances/parked-1")
        taken = world.processes.take(function)
        assert taken is not None
        assert world.processes.take(function) is None
        start = WorkerStart("2-1", function, "secret", 1, "/own", 6.0)
        with open(os.devnull) as file:
            beginning = asyncio.ensure_future(taken.begin(start, [file.fileno()]))
            await asyncio.sleep(0.02)
            assert not beginning.done()
        message, descriptors, _, _ = socket.recv_fds(process.control, 65536, 8)
        process.control.send(b"1")
        assert await beginning
        assert decode_start(message) == start
        os.close(descriptors[0])
        await world.processes.close()
        assert not process.exited.done()  # it is an instance now
        process.end(0)
        taken.work_dir.rmdir()

    in_world(tmp_path, story)


def test_who_asks_is_told_of_which_functions_a_process_waits(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.parked(named("b"))
        process = await world.parked(named("a"))
        assert world.changes[-1] == world.processes.ready == ("a.ns", "b.ns")
        assert world.processes.take(named("b")) is not None
        assert world.changes[-1] == ("a.ns",)
        process.end(-9)
        assert world.processes.ready == ()
        await until(lambda: world.changes[-1] == ())
        world.forked[0].end(0)
        (tmp_path / "run/instances/parked-1").rmdir()

    in_world(tmp_path, story)


@pytest.mark.parametrize("ends", [True, False])
def test_one_that_is_killed_or_hangs_as_its_start_comes_does_not_take_it(
    tmp_path: Path, ends: bool
) -> None:
    async def story(world: World) -> None:
        process = await world.parked()
        taken = world.processes.take(FUNCTION)
        assert taken is not None
        start = WorkerStart("2-1", FUNCTION, "secret", 1, "/own", 6.0)
        beginning = asyncio.ensure_future(taken.begin(start, []))
        await asyncio.sleep(0.02)
        if ends:
            process.end(-9)
        assert not await beginning
        assert process.exited.done()
        taken.work_dir.rmdir()

    in_world(tmp_path, story)


def test_a_start_before_it_is_ready_does_not_get_it_and_the_next_does(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.behave = lambda process: None
        world.wish()
        await until(lambda: world.forked)
        assert world.processes.take(FUNCTION) is None
        world.forked[0].say(event="parked")
        await until(lambda: world.processes.take(FUNCTION))
        world.forked[0].end(0)

    async def cleaned(world: World) -> None:
        await story(world)
        for folder in (tmp_path / "run/instances").iterdir():
            folder.rmdir()

    in_world(tmp_path, cleaned)


def test_it_goes_when_its_function_is_changed_or_deleted_but_not_when_it_is_scaled(
    tmp_path: Path,
) -> None:
    async def story(world: World) -> None:
        process = await world.parked()
        world.processes.changed(FUNCTION.path, replace(FUNCTION, replicas_requested=3))
        await asyncio.sleep(0.05)
        assert not process.exited.done()
        changed = replace(FUNCTION, environment={"A": "b"}, generation=3)
        assert world.processes.take(changed) is None
        world.processes.changed(FUNCTION.path, changed)
        await asyncio.wait_for(process.exited, 5)
        process = await world.parked(changed)
        world.processes.changed(FUNCTION.path, None)
        await asyncio.wait_for(process.exited, 5)
        world.wish()
        world.processes.changed(FUNCTION.path, None)
        await asyncio.sleep(0.1)
        assert len(world.forked) == 2

    in_world(tmp_path, story)


@pytest.mark.parametrize(
    ("behaviour", "told"),
    [
        (lambda process: None, "more than 0.3 s"),
        (lambda process: process.end(1), "the process ended"),
        (lambda process: process.say(event="serving"), "is not kept"),
        (lambda process: process.control.send(b"nonsense"), "as JSON"),
        (
            lambda process: process.say(event="failed", error=StartFailed("No.").to_wire()),
            "is not kept for a start: No.",
        ),
        (
            lambda process: process.say(event="parked", private_bytes=PARKED_BYTES_MAXIMUM + 1),
            "at most 1,073,741,824 bytes",
        ),
    ],
)
def test_one_that_cannot_be_made_ready_is_ended_and_not_tried_again_until_it_changes(
    tmp_path: Path, behaviour: Callable[[Process], None], told: str
) -> None:
    async def story(world: World) -> None:
        world.behave = behaviour
        world.wish()
        await until(lambda: world.forked and world.forked[0].exited.done())
        await until(lambda: told in "".join(world.texts()))
        assert world.processes.take(FUNCTION) is None
        world.wish()
        await asyncio.sleep(0.1)
        assert len(world.forked) == 1
        changed = replace(FUNCTION, generation=3)
        world.processes.changed(FUNCTION.path, changed)
        world.wish(changed)
        await until(lambda: len(world.forked) == 2)

    in_world(tmp_path, story)


def test_what_it_writes_is_in_the_functions_log(tmp_path: Path) -> None:
    def write(process: Process) -> None:
        process.write(b"imported\n")
        process.say(event="parked")

    async def story(world: World) -> None:
        world.behave = write
        await world.parked()
        await until(lambda: "imported" in world.texts())

    in_world(tmp_path, story)


def test_no_more_are_parked_than_the_maximum_and_the_oldest_makes_room(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        made = [await world.parked(named(f"f{number}")) for number in range(PARKED_MAXIMUM + 1)]
        await asyncio.wait_for(made[0].exited, 5)
        assert not any(process.exited.done() for process in made[1:])

    in_world(tmp_path, story)


def test_together_they_hold_no_more_memory_than_the_maximum(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.behave = lambda process: process.say(
            event="parked", private_bytes=PARKED_BYTES_MAXIMUM * 2 // 5
        )
        made = [await world.parked(named(f"f{number}")) for number in range(3)]
        await asyncio.wait_for(made[0].exited, 5)
        assert not any(process.exited.done() for process in made[1:])

    in_world(tmp_path, story)


def test_one_that_dies_leaves_nothing_and_is_made_anew_after_the_next_start(
    tmp_path: Path,
) -> None:
    async def story(world: World) -> None:
        process = await world.parked()
        process.end(-9)
        await until(lambda: not list((tmp_path / "run/instances").iterdir()))
        assert world.processes.take(FUNCTION) is None
        await world.parked()

    in_world(tmp_path, story)


def test_nothing_is_made_ready_while_instances_start(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.wish()
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert world.processes.take(named("other")) is None
        assert not world.forked
        await until(lambda: world.forked)

    in_world(tmp_path, story)


def test_a_classic_function_has_nothing_to_make_ready(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.wish(replace(FUNCTION, annotations={"stoker/handler": "process"}))
        await asyncio.sleep(0.1)
        assert not world.forked

    in_world(tmp_path, story)


def test_code_with_a_model_is_not_made_ready(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.wish(FUNCTION, checkpoint=CHECKPOINT)
        await asyncio.sleep(0.1)
        assert not world.processes._wishes

    in_world(tmp_path, story)


def test_secrets_wait_in_no_process(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.wish(replace(FUNCTION, secrets=("key",)))
        await world.parked(named("other"))
        assert [process.start.function.name for process in world.forked] == ["other"]

    in_world(tmp_path, story)
