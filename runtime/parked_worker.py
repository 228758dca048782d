"""One process that is made ready ahead of its start, as its agent sees it."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stoker.placement.errors import StartFailed, StokerError
from stoker.placement.records import FunctionRecord
from stoker.placement.resources import parse_limits
from stoker.runtime.cgroups import ControlGroups, Group
from stoker.runtime.node import Worker, ZygoteFor
from stoker.runtime.pipes import Pipe
from stoker.runtime.worker_start import ParkStart, WorkerStart, decode_status, encode_start

PARK_SECONDS_MAXIMUM = 60.0
TAKE_SECONDS_MAXIMUM = 1.0
KILL_SECONDS_MAXIMUM = 5.0
LAST_WORDS_SECONDS_MAXIMUM = 1.0
STATUS_BYTES_MAXIMUM = 64 * 1024


class ParkedWorker:
    """`start` is all that can be known of its start. `life` is the task that holds it.

    Once it is `taken`, process, control groups and work folder are the instance's to end.
    """

    def __init__(
        self, start: WorkerStart, groups: ControlGroups, log: Callable[[list[str]], None]
    ) -> None:
        self.start = start
        self.life: asyncio.Task[None] | None = None
        self.taken = False
        self.private_bytes = 0
        self._groups = groups
        self._log = log
        self._grouping: asyncio.Future[Group] | None = None
        self._control: socket.socket | None = None
        self._worker: Worker | None = None
        self._pipe: Pipe | None = None
        self._pump: asyncio.Task[None] | None = None
        self._is_ready = False

    @property
    def name(self) -> str:
        return self.start.instance_id

    @property
    def function(self) -> FunctionRecord:
        return self.start.function

    @property
    def work_dir(self) -> Path:
        return Path(self.start.work_dir)

    @property
    def waits(self) -> bool:
        """Whether it can take a start."""
        return self._is_ready and not self.worker.exited.done()

    @property
    def worker(self) -> Worker:
        assert self._worker is not None  # it is asked for after the fork
        return self._worker

    @property
    def grouping(self) -> asyncio.Future[Group]:
        """Its control groups, made."""
        assert self._grouping is not None
        return self._grouping

    async def fork(self, zygote_for: ZygoteFor) -> None:
        """Forks the process; StokerError if that fails."""
        limits = parse_limits(self.function.limits)
        making = asyncio.to_thread(self._groups.create, self.name, limits)
        self._grouping = asyncio.ensure_future(making)
        paths = tuple((await asyncio.shield(self._grouping)).join_paths)
        start = replace(self.start, sandbox=replace(self.start.sandbox, groups=paths))
        self.work_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._pipe = pipe = await Pipe.open()
        self._pump = asyncio.ensure_future(pipe.pump(self._log))
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        code_dir = None if start.code_dir is None else Path(start.code_dir)
        with theirs:
            async with zygote_for(code_dir, self._log) as zygote:
                descriptors = [theirs.fileno(), pipe.write_end]
                self._worker = await zygote.start(ParkStart(start), descriptors)
        pipe.close_write_end()

    async def be_ready(self) -> None:
        """Returns when it waits; StokerError if it fails, or takes PARK_SECONDS_MAXIMUM."""
        message = await self._answer(PARK_SECONDS_MAXIMUM)
        if not message:
            ended = self.worker.exited.done()
            how = "ended" if ended else f"took more than {PARK_SECONDS_MAXIMUM:g} s"
            raise StartFailed(
                f"Expected {self.function.key} to be made ready for its next start, found that "
                f"the process {how}.",
                "The function's log has what it wrote.",
            )
        status = decode_status(message)
        if status.event != "parked":
            raise StokerError.from_wire(status.error or {})
        self.private_bytes = status.private_bytes
        self._is_ready = True

    async def begin(self, start: WorkerStart, descriptors: Sequence[int]) -> bool:
        """Passes the start on to it; False if it has died, and then nothing came of it.

        A process that is being killed still has its socket: only its answer says that it lives.
        """
        assert self._control is not None
        with self._control:
            try:
                socket.send_fds(self._control, [encode_start(start)], list(descriptors))
                taken = bool(await self._answer(TAKE_SECONDS_MAXIMUM))
            except OSError:
                taken = False
        if not taken:
            self.worker.signal(signal.SIGKILL)
        return taken

    async def _answer(self, timeout_seconds: float) -> bytes:
        """What it says next; b"" if that is nothing."""
        assert self._control is not None
        loop = asyncio.get_running_loop()
        said = asyncio.ensure_future(loop.sock_recv(self._control, STATUS_BYTES_MAXIMUM))
        exited = self.worker.exited
        waits: set[asyncio.Future[Any]] = {said, exited}
        try:
            await asyncio.wait(waits, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
            if exited.done():  # what it said last counts
                await asyncio.wait({said}, timeout=LAST_WORDS_SECONDS_MAXIMUM)
            return said.result() if said.done() and said.exception() is None else b""
        finally:
            said.cancel()

    async def ended(self) -> None:
        await asyncio.wait({self.worker.exited})

    async def release(self) -> None:
        """Ends the process unless it was taken, and gives back what is its own."""
        if self._control is not None:
            self._control.close()
        if self._worker is not None and not self.taken:
            self._worker.signal(signal.SIGKILL)
            await asyncio.wait({self._worker.exited}, timeout=KILL_SECONDS_MAXIMUM)
        if self._pump is not None:
            # A grandchild may hold the pipe open.
            await asyncio.wait({self._pump}, timeout=LAST_WORDS_SECONDS_MAXIMUM)
            self._pump.cancel()
        if self._pipe is not None:
            self._pipe.close()
        if self.taken or self._grouping is None:
            return
        await asyncio.wait({self._grouping})  # a thread cannot be cancelled
        if self._grouping.exception() is None:
            await asyncio.to_thread(self._grouping.result().remove)
        await asyncio.to_thread(shutil.rmtree, self.work_dir, ignore_errors=True)
