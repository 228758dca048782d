"""One instance, from its assignment to its end: where code, checkpoint and process meet.

1. Archive and checkpoint are opened side by side; the checkpoint's bytes flow on behind. Code
   that asks for packages gets an environment with them, and the zygote of that.
2. The process that is parked for the function, or else a fork of the zygote, gets the listening
   socket at once; the agent closes its own copy, so that a dead worker's address refuses whoever
   waits there.
3. The first of these decides what comes next: a line of the worker's status pipe, the worker's
   exit, the failure of the load, an order to stop, the deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import shutil
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from stoker.placement.errors import BadRequest, InstanceLost, StartFailed, StokerError
from stoker.placement.instance_token import instance_token
from stoker.placement.records import Assignment, FunctionRecord, InstanceRecord, encode
from stoker.placement.resources import Limits, parse_limits
from stoker.placement.spec_probes import health_probe
from stoker.runtime.cgroups import Group
from stoker.runtime.health import unhealthy
from stoker.runtime.node import Node, Parked, Worker
from stoker.runtime.openings import Openings
from stoker.runtime.pipes import Pipe
from stoker.runtime.worker_end import cause_of_death
from stoker.runtime.worker_start import (
    CheckpointStart,
    SandboxStart,
    WorkerStart,
    WorkerStatus,
    decode_status,
)

STARTUP_SECONDS_MAXIMUM = 600.0
DRAIN_SECONDS_MAXIMUM = 30.0
# How long a worker that cannot start may take to tell its waiting requests why.
FAREWELL_SECONDS_MAXIMUM = 2.0
KILL_SECONDS_MAXIMUM = 5.0
LAST_WORDS_SECONDS_MAXIMUM = 1.0
ANNOUNCE_SECONDS_MAXIMUM = 2.0
# Who ends sooner, and uncalled, has not started: else it would be started again and again.
SETTLED_SECONDS = 10.0

_log = structlog.get_logger()


class Instance:
    """Its `record` says how it is; each change of it is announced."""

    def __init__(
        self,
        order: Assignment,
        listening: socket.socket,
        find_function: Callable[[], Awaitable[FunctionRecord]],
        node: Node,
        devices: Sequence[str] = (),
        devices_held: Collection[asyncio.Future[None]] = (),
    ) -> None:
        """`devices` are its own; `devices_held` are done when others have ended that have them."""
        self._devices = tuple(devices)
        self._devices_held = devices_held
        self._listening = listening
        self._find_function = find_function
        self._node = node
        self._seen_at = time.monotonic()
        self._stop_requested = asyncio.Event()
        self._grace_seconds = DRAIN_SECONDS_MAXIMUM
        self._drain_seconds = math.inf
        self._farewell_seconds = math.inf
        # The model's, then its adapter's.
        self._openings = Openings(node, self._age)
        self._worker: Worker | None = None
        self._forked_after = 0.0
        self._serving_at = math.inf
        self._served = asyncio.Event()
        self._called = False
        self._grouping: asyncio.Future[Group] | None = None
        self._parked: Parked | None = None
        self._started_with: WorkerStart | None = None
        self._pipes: list[Pipe] = []
        self._log_pump: asyncio.Task[None] | None = None
        self._work_dir = node.run_dir / "instances" / order.instance_id
        self.record = InstanceRecord(
            instance_id=order.instance_id,
            function=order.function,
            generation=order.generation,
            node_id=order.node_id,
            address=order.address,
            state="starting",
            epoch=order.epoch,
            started_at=time.time(),
        )

    def stop(self, drain_seconds: float | None = None) -> None:
        """Let running requests finish for at most `drain_seconds`, then end; the least counts.

        Without them they may take as long as the function lets a request take.
        """
        asked = self._grace_seconds if drain_seconds is None else drain_seconds
        self._drain_seconds = min(self._drain_seconds, asked)
        self._stop_requested.set()

    async def run(self) -> None:
        """The whole life. Its end is told by the record: stopping, or failed with the cause."""
        self._say("starting")
        self._announce(self.record)
        try:
            await self._start_unless_stopped()
            if self._worker is not None:
                await self._watch(self._worker)
            self._say("stopping")
            self._announce(replace(self.record, state="stopping"))
        except StokerError as error:
            await self._fail(error)
        except Exception as error:  # noqa: BLE001 - a bug: the client is told, the trace is kept
            _log.exception("instance_bug", instance_id=self.record.instance_id)
            await self._fail(StartFailed(f"The agent failed with {error!r:.200}."))
        finally:
            await self._release()

    async def _start_unless_stopped(self) -> None:
        starting = asyncio.ensure_future(self._start())
        stopping = asyncio.ensure_future(self._stop_requested.wait())
        try:
            await asyncio.wait(
                {starting, stopping},
                timeout=STARTUP_SECONDS_MAXIMUM,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if starting.done():
                starting.result()
            elif not stopping.done():
                raise self._too_slow()
        finally:
            for task in (starting, stopping):
                task.cancel()
            await asyncio.wait({starting, stopping})

    async def _start(self) -> None:
        loop, node = asyncio.get_running_loop(), self._node
        function = await self._find_function()
        if function.timeouts is not None and function.timeouts.request_seconds is not None:
            self._grace_seconds = function.timeouts.request_seconds
        limits = parse_limits(function.limits)
        self._parked = None if self._devices else node.parking.take(function)
        if self._parked is None:
            making = asyncio.to_thread(node.groups.create, self.record.instance_id, limits)
            self._grouping = asyncio.ensure_future(making)
        else:
            self._grouping, self._work_dir = self._parked.grouping, self._parked.work_dir
        self._openings.begin(function)
        code_dir = None
        if function.code_digest is not None:
            code_dir = await loop.run_in_executor(
                node.threads, node.open_code, function.code_digest
            )
        start = await self._whole_start(function, code_dir, await self._openings.starts())
        self._work_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._devices_held:
            self._say("waits for its devices")
            await asyncio.wait(self._devices_held)
        await self._hand_over(start)

    async def _whole_start(
        self, function: FunctionRecord, code_dir: Path | None, starts: list[CheckpointStart]
    ) -> WorkerStart:
        limits = parse_limits(function.limits)
        return WorkerStart(
            instance_id=self.record.instance_id,
            function=function,
            token=instance_token(self._node.cluster_token, self.record.instance_id),
            threads=limits.threads(self._node.threads_per_worker),
            work_dir=str(self._work_dir),
            started_at=self._seen_at,
            code_dir=None if code_dir is None else str(code_dir),
            checkpoint=starts[0] if starts else None,
            adapter=starts[1] if len(starts) > 1 else None,
            sandbox=await self._sandbox(limits),
            devices=self._devices,
        )

    async def _hand_over(self, start: WorkerStart) -> None:
        """To the process that is parked for it, or else to a fork."""
        for _ in range(2):
            self._pipes.append(await Pipe.open())
        log, status = self._pipes
        given = [self._listening.fileno(), log.write_end, status.write_end]
        given += self._openings.descriptors
        if self._parked is not None and await self._parked.begin(start, given):
            self._worker, how = self._parked.worker, "took parked"
            self.record = replace(self.record, parked=True)
        else:
            code_dir = None if start.code_dir is None else Path(start.code_dir)
            async with self._node.zygote_for(code_dir, self._write_log) as zygote:
                self._worker, how = await zygote.start(start, given), "forked"
        self._forked_after = self._age()
        self._listening.close()
        for pipe in self._pipes:
            pipe.close_write_end()
        self._openings.forget_secrets()
        self._started_with = start
        self._log_pump = asyncio.ensure_future(log.pump(self._write_log))
        self._say(f"{how} worker pid {self._worker.pid} after {self._age():.3f} s")

    async def _sandbox(self, limits: Limits) -> SandboxStart:
        """What the worker must know of its sandbox; a limit that nobody enforces is told."""
        assert self._grouping is not None
        group = await asyncio.shield(self._grouping)
        for name in limits.stated:
            if (why := self._node.groups.missing.get(name)) is not None:
                self._say(f"is not held to limits.{name} by this node ({why})")
        return self._node.sandbox_of(group, limits)

    async def _watch(self, worker: Worker) -> None:
        """Returns when an order to stop came; raises what ended the instance otherwise."""
        status = asyncio.ensure_future(self._next_status())
        stopping = asyncio.ensure_future(self._stop_requested.wait())
        failing = asyncio.ensure_future(self._failure())
        waits: set[asyncio.Future[Any]] = {worker.exited, status, stopping, failing}
        try:
            while not stopping.done():
                remaining = self._seen_at + STARTUP_SECONDS_MAXIMUM - time.monotonic()
                starting = self.record.state == "starting"
                done, _ = await asyncio.wait(
                    waits,
                    timeout=max(0.0, remaining) if starting else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not done:
                    raise self._too_slow()
                if worker.exited.done():
                    raise await self._cause_of_death(worker, status)
                if status.done():
                    waits.discard(status)
                    if (said := status.result()) is not None:
                        self._hear(said)
                        status = asyncio.ensure_future(self._next_status())
                        waits.add(status)
                if failing.done():
                    waits.discard(failing)
                    if (error := failing.result()) is not None:
                        raise error
        finally:
            for wait in (status, stopping, failing):
                wait.cancel()

    async def _failure(self) -> StokerError | None:
        """What a load failed with; otherwise that the function is not well, if it can say so."""
        error = await self._openings.failure(STARTUP_SECONDS_MAXIMUM)
        assert self._started_with is not None
        start, probe = self._started_with, health_probe(self._started_with.function.annotations)
        if error is not None or probe is None:
            return error
        await self._served.wait()
        return await unhealthy(start.function.key, probe, self.record.address, start.token)

    async def _next_status(self) -> WorkerStatus | None:
        """The next line of the status pipe; None at its end."""
        try:
            line = await self._pipes[1].reader.readline()
            return decode_status(line) if line else None
        except (ValueError, BadRequest) as error:
            raise StartFailed(f"Expected a status line from the worker, found: {error}.") from error

    def _hear(self, said: WorkerStatus) -> None:
        if said.event == "failed":
            raise StokerError.from_wire(said.error or {})
        if said.event == "called":
            self._called = True
            return
        assert self._worker is not None
        self._serving_at = time.monotonic()
        self._served.set()
        made = ", made from its template" if said.from_template else ""
        self._say(f"serving at {self.record.address} after {self._age():.3f} s{made}")
        fetched, read = self._openings.transfer_seconds
        self._announce(
            replace(
                self.record,
                state="serving",
                pid=self._worker.pid,
                init_seconds=said.init_seconds,
                start_seconds=self._age(),
                process_seconds=self._forked_after + said.init_seconds,
                fetch_seconds=fetched,
                ssd_seconds=read,
            )
        )
        self._node.on_serving(said.init_seconds)
        assert self._started_with is not None
        self._node.parking.wish(self._started_with)

    async def _cause_of_death(
        self, worker: Worker, status: asyncio.Future[WorkerStatus | None]
    ) -> StokerError:
        """What the worker said last, or how it ended."""
        with contextlib.suppress(TimeoutError, StartFailed):
            async with asyncio.timeout(LAST_WORDS_SECONDS_MAXIMUM):
                while (said := await status) is not None:
                    if said.event == "failed":
                        return StokerError.from_wire(said.error or {})
                    self._called = self._called or said.event == "called"
                    status = asyncio.ensure_future(self._next_status())
        started = self._called or time.monotonic() - self._serving_at >= SETTLED_SECONDS
        story = self._grouping.result().memory_story() if self._grouping is not None else None
        return cause_of_death(
            self.record.function, worker, InstanceLost if started else StartFailed, story
        )

    async def _fail(self, error: StokerError) -> None:
        # Told before the socket closes: whoever is refused asks placement and gets the cause.
        self._farewell_seconds = FAREWELL_SECONDS_MAXIMUM
        self._say(f"failed: {error}")
        self._announce(replace(self.record, state="failed", failure=error.to_wire()))
        await self._node.announcer.settled(self.record.path, ANNOUNCE_SECONDS_MAXIMUM)

    def _announce(self, record: InstanceRecord) -> None:
        self.record = record
        self._node.announcer.put(record.path, encode(record))

    async def _release(self) -> None:
        """End the process and give everything back; the weights stay in memory."""
        self._listening.close()
        if self._worker is not None:
            await self._end(self._worker)
        if self._parked is not None and self._parked.worker is not self._worker:
            self._parked.worker.signal(signal.SIGKILL)
        if self._log_pump is not None:
            # A grandchild may hold the pipe open.
            await asyncio.wait({self._log_pump}, timeout=LAST_WORDS_SECONDS_MAXIMUM)
            self._log_pump.cancel()
        for pipe in self._pipes:
            pipe.close()
        self._openings.close()
        await self._remove_group()
        await asyncio.to_thread(shutil.rmtree, self._work_dir, ignore_errors=True)
        self._say("ended")

    async def _remove_group(self) -> None:
        if self._grouping is None:
            return
        await asyncio.wait({self._grouping})  # a thread cannot be cancelled
        if self._grouping.exception() is None:
            group = self._grouping.result()
            # Of a killed worker the failure has told; a killed child of it has no other voice.
            memory_story = None if self.record.state == "failed" else group.memory_story()
            for story in (memory_story, group.pids_story()):
                if story is not None:
                    self._say(story)
            await asyncio.to_thread(group.remove)

    async def _end(self, worker: Worker) -> None:
        if worker.exited.done():
            return
        asked = self._drain_seconds if self._stop_requested.is_set() else self._grace_seconds
        drain = min(self._farewell_seconds, asked)
        for number, seconds in (
            (signal.SIGTERM, drain),
            (signal.SIGKILL, KILL_SECONDS_MAXIMUM),
        ):
            worker.signal(number)
            await asyncio.wait({worker.exited}, timeout=seconds)
            if worker.exited.done():
                return
        _log.error("worker_survives", pid=worker.pid, instance_id=self.record.instance_id)

    def _say(self, text: str) -> None:
        self._write_log([f"instance {self.record.instance_id} {text}"])

    def _write_log(self, texts: list[str]) -> None:
        try:
            self._node.logs.append(self.record.function, self.record.instance_id, texts)
        except OSError as error:
            _log.warning("function_log_failed", function=self.record.function, cause=str(error))

    def _age(self) -> float:
        return time.monotonic() - self._seen_at

    def _too_slow(self) -> StartFailed:
        return StartFailed(
            f"Expected {self.record.function} to serve within {STARTUP_SECONDS_MAXIMUM:g} s, "
            "found that it still starts.",
            "Read the function's log; a smaller model starts faster.",
        )
