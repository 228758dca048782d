"""One instance on a node of fakes: its checkpoint, its worker, and what it announces."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

import orjson

from stoker.placement.errors import (
    StokerError,
)
from stoker.placement.records import Assignment, CheckpointRef, FunctionRecord
from stoker.runtime.cgroups import ControlGroups, Group
from stoker.runtime.function_logs import FunctionLogs, LogQuery
from stoker.runtime.instance import Instance
from stoker.runtime.node import Node
from stoker.runtime.secret_files import packed
from stoker.runtime.spare_sockets import address_of, listen
from stoker.runtime.worker_start import WorkerStart

FUNCTION = FunctionRecord("echo", "openfaas-fn", "echo:latest")
MODEL = replace(FUNCTION, checkpoint=CheckpointRef("file:///m", "a" * 64, 10, False))
SERVING = {"event": "serving", "init_seconds": 0.25}
CALLED = {"event": "called"}


@dataclass
class FakeProgress:
    fd: int
    fetch_seconds: float = 0.0
    load_seconds: float = 0.0


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


class FakeParked:
    """Becomes a worker with the start that it gets, unless it `is_dead`."""

    def __init__(self, folder: Path, *, is_dead: bool = False) -> None:
        self.work_dir = folder / "parked-1"
        self.work_dir.mkdir()
        self.grouping: asyncio.Future[Group] = asyncio.Future()
        self.grouping.set_result(Group(join_paths=["/group/tasks"]))
        self.is_dead = is_dead
        self.begun: FakeWorker | None = None
        self.killed = False
        self.pid = 17
        self.exited: asyncio.Future[int] = asyncio.Future()

    @property
    def worker(self) -> Any:
        return self.begun or self

    def signal(self, number: signal.Signals) -> None:
        self.killed = True

    async def begin(self, start: WorkerStart, descriptors: Sequence[int]) -> bool:
        if not self.is_dead:
            self.begun = FakeWorker(start, descriptors, set())
        return not self.is_dead


class World:
    """A node of fakes around one instance."""

    def __init__(
        self,
        tmp_path: Path,
        function: FunctionRecord = FUNCTION,
        parked: FakeParked | None = None,
    ) -> None:
        self.function: FunctionRecord | StokerError = function
        self.checkpoint = FakeCheckpoint(tmp_path)
        self.opens: Callable[[], FakeCheckpoint] = lambda: self.checkpoint
        self.ignores: set[int] = set()
        self.fork_error: StokerError | None = None
        self.worker: FakeWorker | None = None
        self.forked = asyncio.Event()
        self.leases = 0
        self.parked = parked
        self.wished: list[WorkerStart] = []
        self.opened_for: list[CheckpointRef] = []
        self.states: list[str] = []
        self.failures: list[Any] = []
        self.socket_open_at_failure = False
        self.init_seconds: list[float] = []
        self.logs = FunctionLogs(tmp_path / "logs")
        self.changed = asyncio.Event()
        self.open_secrets: Callable[[FunctionRecord], int] = lambda function: packed({})
        self.listening = listen("127.0.0.1", 0)
        self.address = address_of(self.listening)
        self.executor = ThreadPoolExecutor(4)
        node = Node(
            open_checkpoint=lambda ref, function: self.opened_for.append(ref) or self.opens(),
            open_code=lambda digest: tmp_path / digest,
            open_secrets=lambda function: self.open_secrets(function),
            zygote_for=self.zygote_for,
            parking=self,
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

    @property
    def ready(self) -> tuple[str, ...]:
        raise AssertionError("instances ask for their own")

    def take(self, function: FunctionRecord) -> FakeParked | None:
        taken, self.parked = self.parked, None
        return taken

    def wish(self, start: WorkerStart) -> None:
        self.wished.append(start)

    def changed(self, path: str, function: FunctionRecord | None) -> None:
        raise AssertionError("instances change no function")

    async def close(self) -> None:
        raise AssertionError("instances close no node")

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
    parked: Callable[[], FakeParked] | None = None,
) -> World:
    async def run() -> World:
        world = World(tmp_path, function, None if parked is None else parked())
        await story(world)
        assert world.leases == 0
        return world

    return asyncio.run(run())
