"""Keeps one zygote alive and has it fork workers."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import structlog

from stoker.placement.errors import BadRequest, StartFailed, StokerError
from stoker.runtime.worker_start import (
    MESSAGE_BYTES_MAXIMUM,
    Start,
    ZygoteEvent,
    decode_event,
    encode_start,
    zygote_environment,
)

READY_SECONDS_MAXIMUM = 60.0
FORK_SECONDS_MAXIMUM = 10.0
UNDO_SECONDS_MAXIMUM = 2.0
RESTART_SECONDS_MINIMUM = 0.1
RESTART_SECONDS_MAXIMUM = 5.0
LONG_LIFE_SECONDS = 30.0
EXIT_SECONDS_MAXIMUM = 1.0

_log = structlog.get_logger()


class ForkedWorker:
    """A process, mostly a worker, reached by its pid descriptor, so that a reused pid is never hit.

    `exited` gives the exit code, or minus the signal that ended it.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._descriptor: int | None = None
        with contextlib.suppress(ProcessLookupError):  # it is gone: an exit event follows
            self._descriptor = os.pidfd_open(pid)

    @staticmethod
    def of(process: subprocess.Popen[bytes]) -> ForkedWorker:
        """A program that was started here, and is reaped when it ends."""
        made, loop = ForkedWorker(process.pid), asyncio.get_running_loop()
        descriptor = made._descriptor
        assert descriptor is not None  # a child that was not reaped has a pid

        def reap() -> None:
            loop.remove_reader(descriptor)
            made.ended(process.wait())

        loop.add_reader(descriptor, reap)
        return made

    def signal(self, number: signal.Signals) -> None:
        if self._descriptor is not None and not self.exited.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, number)

    def ended(self, status: int) -> None:
        if not self.exited.done():
            self.exited.set_result(status)
            kill_session(self.pid)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def kill_session(leader: int) -> None:
    """Kills every process of the session that `leader` led: nothing a worker forked outlives it.

    A process group would not do: each classic function's process has its own.
    """
    for entry in os.scandir("/proc"):
        with contextlib.suppress(ValueError, ProcessLookupError, PermissionError):
            if os.getsid(pid := int(entry.name)) == leader:
                os.kill(pid, signal.SIGKILL)


Launch = Callable[[int], Awaitable[ForkedWorker]]
"""Starts a zygote that serves the socket with this descriptor."""


def program(
    work_dir: Path,
    environment: Mapping[str, str],
    command: Sequence[str] = (sys.executable, "-P", "-m", "stoker.runtime.zygote"),
) -> Launch:
    """A zygote that is a program of its own, and imports everything itself."""

    async def launch(control: int) -> ForkedWorker:
        process = subprocess.Popen(
            [*command, str(control)],
            pass_fds=(control,),
            stdin=subprocess.DEVNULL,
            env=zygote_environment(environment),
            cwd=work_dir,
        )
        return ForkedWorker.of(process)

    return launch


class ZygoteClient:
    """`run` keeps the zygote alive; `start` forks from it. One event loop owns it."""

    def __init__(
        self,
        launch: Launch,
        *,
        on_change: Callable[[], None] = lambda: None,
        ready_seconds: float = READY_SECONDS_MAXIMUM,
    ) -> None:
        self._launch = launch
        self._on_change = on_change
        self._ready_seconds = ready_seconds
        self._ready = asyncio.Event()
        self._modules: tuple[str, ...] = ()
        self._socket: socket.socket | None = None
        self._forks: dict[str, asyncio.Future[ForkedWorker]] = {}
        self._workers: dict[int, ForkedWorker] = {}
        self._sending = asyncio.Lock()

    @property
    def ready(self) -> bool:
        return self._ready.is_set()

    async def run(self) -> None:
        """Keep a zygote alive until cancelled; its workers end with it."""
        delay = RESTART_SECONDS_MINIMUM
        while True:
            started_at = time.monotonic()
            try:
                status = await self._live_once()
                _log.warning("zygote_died", status=status)
            except (OSError, StokerError) as error:
                _log.error("zygote_start_failed", cause=str(error))
            if time.monotonic() - started_at > LONG_LIFE_SECONDS:
                delay = RESTART_SECONDS_MINIMUM
            await asyncio.sleep(delay)
            delay = min(2 * delay, RESTART_SECONDS_MAXIMUM)

    async def imported(self) -> tuple[str, ...]:
        """The top-level modules that the zygote has imported; StartFailed without a zygote."""
        await self._wait_until_ready()
        return self._modules

    async def start(self, start: Start, descriptors: Sequence[int]) -> ForkedWorker:
        """Fork a process that inherits `descriptors`; StartFailed when that is not possible."""
        message = encode_start(start)
        await self._wait_until_ready()
        forked: asyncio.Future[ForkedWorker] = asyncio.get_running_loop().create_future()
        self._forks[start.instance_id] = forked
        try:
            async with asyncio.timeout(FORK_SECONDS_MAXIMUM):
                await self._send(message, descriptors)
                worker = await asyncio.shield(forked)
        except TimeoutError as error:
            raise StartFailed(
                f"Expected the zygote to fork {start.instance_id} within "
                f"{FORK_SECONDS_MAXIMUM:g} s, found no answer."
            ) from error
        except asyncio.CancelledError:
            await _undo(forked)
            raise
        finally:
            # A fork that comes later has no owner and is killed.
            self._forks.pop(start.instance_id, None)
        return worker

    async def _wait_until_ready(self) -> None:
        try:
            await asyncio.wait_for(self._ready.wait(), self._ready_seconds)
        except TimeoutError as error:
            raise StartFailed(
                f"Expected the zygote to be ready within {self._ready_seconds:g} s, "
                "found that it is not.",
                "Look for its traceback in the agent's log.",
            ) from error

    async def _send(self, message: bytes, descriptors: Sequence[int]) -> None:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        async with self._sending:
            while True:
                if self._socket is None:
                    raise _died()
                try:
                    self._socket.sendmsg([message], [rights])
                    return
                except BlockingIOError:
                    await _writable(self._socket)
                except OSError as error:
                    raise _died() from error

    async def _live_once(self) -> int:
        """One zygote from its start to its end; returns its exit status."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            ours.setblocking(False)
            with theirs:
                process = await self._launch(theirs.fileno())
            self._socket = ours
            try:
                await self._receive(ours)
                self._bury()
                # It has closed its socket, so it is about to end.
                await asyncio.wait({process.exited}, timeout=EXIT_SECONDS_MAXIMUM)
                process.signal(signal.SIGKILL)
                return await process.exited
            finally:
                process.signal(signal.SIGKILL)
                self._bury()
                await asyncio.wait({process.exited}, timeout=EXIT_SECONDS_MAXIMUM)

    async def _receive(self, ours: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                message = await loop.sock_recv(ours, MESSAGE_BYTES_MAXIMUM)
            except OSError:
                return
            if not message:
                return
            try:
                self._take(decode_event(message))
            except BadRequest as error:
                _log.error("zygote_event_unreadable", cause=error.cause)

    def _take(self, event: ZygoteEvent) -> None:
        if event.event == "ready":
            self._modules = event.modules
            self._ready.set()
            self._on_change()
        elif event.event == "forked":
            worker = self._workers[event.pid] = ForkedWorker(event.pid)
            forked = self._forks.get(event.instance_id)
            if forked is None or forked.done():
                worker.signal(signal.SIGKILL)
            else:
                forked.set_result(worker)
        elif event.event == "exited":
            ended = self._workers.pop(event.pid, None)
            if ended is not None:
                ended.ended(event.status)
        else:
            refused = self._forks.get(event.instance_id)
            if refused is not None and not refused.done():
                refused.set_exception(StokerError.from_wire(event.error or {}))

    def _bury(self) -> None:
        """The zygote is gone, and by the kernel's hand every worker with it."""
        self._socket = None
        was_ready = self._ready.is_set()
        self._ready.clear()
        for forked in self._forks.values():
            if not forked.done():
                forked.set_exception(_died())
        for worker in self._workers.values():
            worker.signal(signal.SIGKILL)
            worker.ended(-signal.SIGKILL)
        self._workers.clear()
        if was_ready:
            self._on_change()


async def _undo(forking: asyncio.Future[ForkedWorker]) -> None:
    """Ends a worker that nobody wants any more; until then it may write into its folder."""
    await asyncio.wait({forking}, timeout=UNDO_SECONDS_MAXIMUM)
    if forking.done() and forking.exception() is None:
        worker = forking.result()
        worker.signal(signal.SIGKILL)
        await asyncio.wait({worker.exited}, timeout=UNDO_SECONDS_MAXIMUM)


def _died() -> StartFailed:
    return StartFailed(
        "Expected the zygote to fork a worker, found that it died.",
        "Try again: it is started anew.",
    )


async def _writable(sending: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    writable = asyncio.Event()
    loop.add_writer(sending, writable.set)
    try:
        await writable.wait()
    finally:
        loop.remove_writer(sending)
