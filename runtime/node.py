"""What an instance needs of its node: the seams at which the planes meet."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stoker.placement.records import CheckpointRef, FunctionRecord
from stoker.placement.resources import Limits
from stoker.runtime.cgroups import ControlGroups, Group
from stoker.runtime.function_logs import FunctionLogs
from stoker.runtime.worker_start import ParkStart, SandboxStart, WorkerStart


class LoadProgress(Protocol):
    """How far a load is, and how long its bytes took from afar and from the disk."""

    @property
    def fd(self) -> int: ...
    @property
    def fetch_seconds(self) -> float: ...
    @property
    def load_seconds(self) -> float: ...


class OpenCheckpoint(Protocol):
    """A checkpoint that stays in the pool until `close`."""

    @property
    def chunks(self) -> Sequence[int]: ...
    @property
    def byte_count(self) -> int: ...
    @property
    def files_dir(self) -> Path: ...
    @property
    def layout_path(self) -> Path: ...
    @property
    def progress(self) -> LoadProgress: ...
    @property
    def resident(self) -> bool: ...

    def wait(self, timeout_seconds: float) -> None: ...

    def close(self) -> None: ...


class Worker(Protocol):
    """A forked process; `exited` gives the exit code, or minus the signal."""

    @property
    def pid(self) -> int: ...
    @property
    def exited(self) -> asyncio.Future[int]: ...

    def signal(self, number: signal.Signals) -> None: ...


class Zygote(Protocol):
    async def start(self, start: WorkerStart | ParkStart, descriptors: Sequence[int]) -> Worker:
        """Forks a worker that inherits the descriptors; StokerError when it cannot."""
        ...


ZygoteFor = Callable[
    [Path | None, Callable[[list[str]], None]], AbstractAsyncContextManager[Zygote]
]
"""What forks workers for the code in a folder, and writes to the function's log meanwhile."""


class Parked(Protocol):
    """A process that has been made ready for one start."""

    @property
    def worker(self) -> Worker: ...
    @property
    def work_dir(self) -> Path: ...
    @property
    def grouping(self) -> asyncio.Future[Group]: ...

    async def begin(self, start: WorkerStart, descriptors: Sequence[int]) -> bool:
        """Passes the start on to it; False if it has died."""
        ...


class Parking(Protocol):
    """The processes that are made ready; see parked.py."""

    @property
    def ready(self) -> tuple[str, ...]: ...

    def take(self, function: FunctionRecord) -> Parked | None: ...
    def wish(self, start: WorkerStart) -> None: ...
    def changed(self, path: str, function: FunctionRecord | None) -> None: ...
    async def close(self) -> None: ...


class Announcer(Protocol):
    """`put` returns at once; `settled` waits until the store has what was put."""

    def put(self, path: str, value: bytes) -> None: ...

    async def settled(self, path: str, timeout_seconds: float) -> bool: ...


@dataclass(frozen=True, slots=True)
class Node:
    """What an instance needs of its node.

    `sandbox_levels` are those that every worker enters, `hidden` the folders that none sees.
    What opens something blocks and is run in `threads`; waiting for a load to end takes a thread of
    `waiting_threads`. A checkpoint is opened for a function, for which there must be memory; its
    secrets are opened as the descriptor of a memory file. `on_serving` is told the init seconds.
    `devices` are the node's, by their numbers, as CUDA names them.
    """

    open_checkpoint: Callable[[CheckpointRef, FunctionRecord], OpenCheckpoint]
    open_code: Callable[[str], Path]
    open_secrets: Callable[[FunctionRecord], int]
    zygote_for: ZygoteFor
    parking: Parking
    announcer: Announcer
    on_serving: Callable[[float], None]
    logs: FunctionLogs
    pool_descriptor: int
    cluster_token: str
    threads_per_worker: int
    run_dir: Path
    threads: Executor
    waiting_threads: Executor
    groups: ControlGroups
    sandbox_levels: tuple[str, ...]
    hidden: tuple[str, ...]
    devices: tuple[str, ...] = ()

    def sandbox_of(self, group: Group, limits: Limits) -> SandboxStart:
        return SandboxStart(
            levels=self.sandbox_levels,
            hidden=self.hidden,
            groups=tuple(group.join_paths),
            memory_bytes=limits.memory_bytes,
        )
