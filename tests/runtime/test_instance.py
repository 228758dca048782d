from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

import orjson
import pytest

from stoker.placement.errors import (
    CheckpointMissing,
    ChunkCorrupt,
    FunctionNotFound,
    InstanceLost,
    StartFailed,
    StokerError,
)
from stoker.placement.records import Assignment, CheckpointRef, FunctionRecord
from stoker.runtime import instance as instance_module
from stoker.runtime.cgroups import ControlGroups
from stoker.runtime.function_logs import FunctionLogs, LogQuery
from stoker.runtime.instance import Instance
from stoker.runtime.node import Node
from stoker.runtime.spare_sockets import address_of, listen
from stoker.runtime.worker_start import WorkerStart

FUNCTION = FunctionRecord("echo", "openfaas-fn", "echo:latest")
MODEL = replace(FUNCTION, checkpoint=CheckpointRef("file:///m", "a" * 64, 10, False))
SERVING = {"event": "serving", "init_seconds": 0.25}
CALLED = {"event": "called"}


@dataclass
class FakeProgress:
    fd: int


@dataclass
class FakeCheckpoint:
    """Loads until `loaded` is set; then `failure` says how that went."""

    tmp: Path
    failure: StokerError | None = None
    loaded: Event = field(default_factory=Event)
    closed: Event = field(default_factory=Event)
    chunks: tuple[int, ...] = (3, 1)
    byte_count: int = 20
    resident: bool = True
    progress: FakeProgress = field(default_factory=lambda: FakeProgress(2))

    @property
    def files_dir(self) -> Path:
        return self.tmp

    @property
    def layout_path(self) -> Path:
        return self.tmp / "layout.json"

    def wait(self, timeout_seconds: float) -> None:
        assert self.loaded.wait(10)
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        self.loaded.set()
        self.closed.set()


class FakeWorker:
    """Exits when it is told to by a signal that it does not ignore."""

    def __init__(self, start: WorkerStart, descriptors: Sequence[int], ignores: set[int]) -> None:
        self.pid = 4242
        self.start = start
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.signals: list[int] = []
        self.descriptor_count = len(descriptors)
        self._ignores = ignores
        self._listen, self._log, self._status = (os.dup(d) for d in descriptors[:3])

    def say(self, status: dict[str, Any]) -> None:
        os.write(self._status, orjson.dumps(status) + b"\n")

    def write(self, text: bytes) -> None:
        os.write(self._log, text)

    def exit(self, status: int) -> None:
        for descriptor in (self._listen, self._log, self._status):
            os.close(descriptor)
        self.exited.set_result(status)

    def signal(self, number: signal.Signals) -> None:
        self.signals.append(number)
        if number not in self._ignores:
            self.exit(-number)


class World:
    """A node of fakes around one instance."""

    def __init__(self, tmp_path: Path, function: FunctionRecord = FUNCTION) -> None:
        self.function: FunctionRecord | StokerError = function
        self.checkpoint = FakeCheckpoint(tmp_path)
        self.opens: Callable[[], FakeCheckpoint] = lambda: self.checkpoint
        self.ignores: set[int] = set()
        self.fork_error: StokerError | None = None
        self.worker: FakeWorker | None = None
        self.forked = asyncio.Event()
        self.leases = 0
        self.opened_for: list[CheckpointRef] = []
        self.states: list[str] = []
        self.failures: list[Any] = []
        self.socket_open_at_failure = False
        self.init_seconds: list[float] = []
        self.logs = FunctionLogs(tmp_path / "logs")
        self.changed = asyncio.Event()
        self.listening = listen("127.0.0.1", 0)
        self.address = address_of(self.listening)
        self.executor = ThreadPoolExecutor(4)
        node = Node(
            open_checkpoint=lambda ref, function: self.opened_for.append(ref) or self.opens(),
            open_code=lambda digest: tmp_path / digest,
            zygote_for=self.zygote_for,
            announcer=self,
            on_serving=self.init_seconds.append,
            logs=self.logs,
            pool_descriptor=2,
            cluster_token="token",
            threads_per_worker=1,
            run_dir=tmp_path / "run",
            threads=self.executor,
            waiting_threads=self.executor,
            groups=ControlGroups([], {}),
            sandbox_levels=(),
            hidden=(),
        )
        key, generation = FUNCTION.key, FUNCTION.generation
        order = Assignment("1-1", key, generation, "n1", self.address, 1, 0.0)
        self.instance = Instance(order, self.listening, self.find_function, node)
        self.task = asyncio.ensure_future(self.instance.run())

    async def find_function(self) -> FunctionRecord:
        if isinstance(self.function, StokerError):
            raise self.function
        return self.function

    @asynccontextmanager
    async def zygote_for(
        self, code_dir: Path | None, log: Callable[[list[str]], None]
    ) -> AsyncIterator[World]:
        log([f"a zygote for {code_dir}"])
        self.leases += 1
        try:
            yield self
        finally:
            self.leases -= 1

    async def start(self, start: WorkerStart, descriptors: Sequence[int]) -> FakeWorker:
        if self.fork_error is not None:
            raise self.fork_error
        self.worker = FakeWorker(start, descriptors, self.ignores)
        self.forked.set()
        return self.worker

    def put(self, path: str, value: bytes) -> None:
        assert path == "/instances/n1/1-1"
        record = orjson.loads(value)
        self.states.append(record["state"])
        if record["failure"]:
            self.failures.append(record["failure"])
            self.socket_open_at_failure = self.listening.fileno() != -1
        self.changed.set()

    async def settled(self, path: str, timeout_seconds: float) -> bool:
        return True

    async def until(self, state: str) -> None:
        while state not in self.states:
            await asyncio.wait_for(self.changed.wait(), 5)
            self.changed.clear()

    async def serving(self) -> FakeWorker:
        return await self.said(SERVING)

    async def said(self, status: dict[str, Any]) -> FakeWorker:
        await asyncio.wait_for(self.forked.wait(), 5)
        assert self.worker is not None
        self.worker.say(status)
        if status is SERVING:
            await self.until("serving")
        return self.worker

    async def end(self) -> None:
        await asyncio.wait_for(self.task, 10)
        self.executor.shutdown(wait=False)

    def texts(self) -> list[str]:
        lines = self.logs.open(LogQuery(FUNCTION.key)).lines()
        return [orjson.loads(line)["text"] for line in lines]


def in_world(
    tmp_path: Path,
    story: Callable[[World], Coroutine[Any, Any, None]],
    function: FunctionRecord = FUNCTION,
) -> World:
    async def run() -> World:
        world = World(tmp_path, function)
        await story(world)
        assert world.leases == 0
        return world

    return asyncio.run(run())


def test_a_life_from_start_to_stop(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        worker = await world.serving()
        worker.write(b"hello\nunfinished")
        world.instance.stop()
        await world.end()
        assert worker.signals == [signal.SIGTERM]

    world = in_world(tmp_path, story)
    assert world.states == ["starting", "serving", "stopping"]
    assert world.init_seconds == [0.25]
    assert world.instance.record.init_seconds == 0.25
    assert world.instance.record.pid == 4242
    assert "hello" in world.texts()
    assert "unfinished" in world.texts()
    assert world.texts()[0] == "instance 1-1 starting"
    assert not (tmp_path / "run/instances/1-1").exists()


def test_after_the_fork_the_agents_copy_of_the_socket_is_closed(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        worker = await world.serving()
        assert world.listening.fileno() == -1
        host, port = world.address.split(":")
        with socket.create_connection((host, int(port)), timeout=5):
            worker.exit(0)
        await world.end()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=5)

    in_world(tmp_path, story)


def test_a_model_is_forked_while_its_bytes_still_flow(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        worker = await world.serving()
        assert not world.checkpoint.loaded.is_set()
        assert worker.descriptor_count == 5
        assert worker.start.checkpoint is not None
        assert worker.start.checkpoint.chunks == (3, 1)
        world.instance.stop()
        await world.end()
        assert await asyncio.to_thread(world.checkpoint.closed.wait, 5)

    in_world(tmp_path, story, MODEL)


@pytest.mark.parametrize(
    ("said", "settled_seconds", "status", "how", "error"),
    [
        (SERVING, 10.0, 3, "ended with exit code 3", StartFailed),
        (SERVING, 0.0, 3, "ended with exit code 3", InstanceLost),
        # It may be called before its weights are all there.
        (CALLED, 10.0, -9, "died of signal 9", InstanceLost),
    ],
)
def test_a_worker_that_dies_says_how_and_uncalled_at_once_it_has_not_started(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: dict[str, Any],
    settled_seconds: float,
    status: int,
    how: str,
    error: type[StokerError],
) -> None:
    monkeypatch.setattr(instance_module, "SETTLED_SECONDS", settled_seconds)

    async def story(world: World) -> None:
        worker = await world.said(said)
        worker.exit(status)
        await world.end()

    world = in_world(tmp_path, story)
    assert world.states[-1] == "failed"
    (failure,) = world.failures
    assert failure["code"] == error.code
    assert "worker pid 4242" in failure["cause"]
    assert how in failure["cause"]
    assert any(how in text for text in world.texts())


def test_a_workers_last_words_outrank_how_it_ended(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.forked.wait()
        assert world.worker is not None
        wire = StartFailed("No handler.py was found.").to_wire()
        world.worker.say({"event": "failed", "error": wire})
        world.worker.exit(1)
        await world.end()

    world = in_world(tmp_path, story)
    assert world.failures == [StartFailed("No handler.py was found.").to_wire()]


def test_a_failed_load_gives_the_worker_two_seconds_to_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance_module, "FAREWELL_SECONDS_MAXIMUM", 0.05)

    async def story(world: World) -> None:
        world.ignores.add(signal.SIGTERM)
        world.checkpoint.failure = ChunkCorrupt("Chunk 3 is not what it was.", expected="a")
        await world.forked.wait()
        world.checkpoint.loaded.set()
        await world.end()
        assert world.worker is not None
        assert world.worker.signals == [signal.SIGTERM, signal.SIGKILL]

    world = in_world(tmp_path, story, MODEL)
    assert world.failures[0]["code"] == ChunkCorrupt.code
    assert world.failures[0]["details"] == {"expected": "a"}


def test_an_adapter_is_opened_and_handed_over_beside_its_model(tmp_path: Path) -> None:
    adapter = CheckpointRef("file:///a", "b" * 64, 10, False)

    async def story(world: World) -> None:
        worker = await world.serving()
        assert worker.start.descriptor_names[3:] == ("pool", "progress", "adapter_progress")
        assert worker.descriptor_count == 6
        assert worker.start.adapter is not None
        assert worker.start.adapter.digest == adapter.digest
        world.instance.stop()
        await world.end()
        assert world.opened_for == [MODEL.checkpoint, adapter]

    in_world(tmp_path, story, replace(MODEL, adapter=adapter))


def test_a_checkpoint_that_does_not_open_fails_the_record_before_the_socket_closes(
    tmp_path: Path,
) -> None:
    async def story(world: World) -> None:
        def missing() -> FakeCheckpoint:
            raise CheckpointMissing("Nothing is at file:///m.")

        world.opens = missing
        await world.end()
        assert world.listening.fileno() == -1

    world = in_world(tmp_path, story, MODEL)
    assert world.failures[0]["code"] == CheckpointMissing.code
    assert world.socket_open_at_failure
    assert world.worker is None


@pytest.mark.parametrize("place", ["function", "fork"])
def test_a_start_that_fails_before_the_fork_is_told_with_its_cause(
    tmp_path: Path, place: str
) -> None:
    async def story(world: World) -> None:
        if place == "function":
            world.function = FunctionNotFound("It is gone.")
        else:
            world.fork_error = FunctionNotFound("It is gone.")
        await world.end()

    assert in_world(tmp_path, story, MODEL).failures[0]["cause"] == "It is gone."


def test_stopping_during_the_open_closes_what_is_opened_too_late(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        opening, go_on = Event(), Event()

        def slow() -> FakeCheckpoint:
            opening.set()
            assert go_on.wait(5)
            return world.checkpoint

        world.opens = slow
        assert await asyncio.to_thread(opening.wait, 5)
        world.instance.stop()
        await asyncio.wait_for(world.task, 5)
        go_on.set()
        assert await asyncio.to_thread(world.checkpoint.closed.wait, 5)
        assert world.worker is None
        await world.end()

    assert in_world(tmp_path, story, MODEL).states == ["starting", "stopping"]


def test_a_worker_that_does_not_drain_in_time_is_killed(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.ignores.add(signal.SIGTERM)
        worker = await world.serving()
        world.instance.stop(0.05)
        await world.end()
        assert worker.signals == [signal.SIGTERM, signal.SIGKILL]

    in_world(tmp_path, story)


def test_a_worker_that_never_serves_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance_module, "STARTUP_SECONDS_MAXIMUM", 0.1)

    async def story(world: World) -> None:
        await world.end()

    world = in_world(tmp_path, story)
    assert "to serve within 0.1 s" in world.failures[0]["cause"]


def test_a_line_that_is_no_status_fails_the_start(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.forked.wait()
        assert world.worker is not None
        world.worker.say({"event": "dancing"})
        await world.end()

    assert in_world(tmp_path, story).failures[0]["code"] == StartFailed.code
