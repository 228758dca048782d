"""One worker process: a fork of the zygote that becomes one instance of one function.

It gives up what a function has no use for (sandbox.py), then serves HTTP on the socket that it
inherits while the function is made ready in a thread; `serving` or `failed` goes to the agent
through the status pipe. SIGTERM lets running requests finish.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import uvloop

from stoker.placement.errors import InstanceLost, StartFailed, StokerError
from stoker.placement.spec_probes import ready_probe
from stoker.runtime import linux, sandbox
from stoker.runtime.cgroups import Joining
from stoker.runtime.handlers.calls import contained_task
from stoker.runtime.handlers.http import Handler, Request, Response
from stoker.runtime.readiness import Readiness
from stoker.runtime.secret_files import unpacked
from stoker.runtime.template import ModelTemplate
from stoker.runtime.worker_function import Prepared, build
from stoker.runtime.worker_http import WATCHDOG_PATHS, Ready, WorkerApp
from stoker.runtime.worker_server import Server, server_config
from stoker.runtime.worker_start import WorkerStart, WorkerStatus, encode_event

STOP_SECONDS_MAXIMUM = 5.0
PORT_VARIABLES = ("PORT", "LISTEN_ADDRESS")
_KEPT = ("PATH", "LANG", "LC_ALL", "TZ", "PYTHONPATH", "LD_LIBRARY_PATH", "OMP_WAIT_POLICY")


def die_with_parent() -> None:
    """Has the kernel kill this process when the one that forked it ends."""
    linux.die_with_parent(signal.SIGKILL)


def run(start: WorkerStart, descriptors: Sequence[int], template: ModelTemplate | None) -> int:
    """Serves `start` until told to stop; the exit code. Called in the child, right after the fork.

    `descriptors` are those that `start.descriptor_names` names, in that order.
    """
    forked_at = time.monotonic()
    listen, log, status, *others = descriptors
    try:
        secrets = unpacked(others.pop(0)) if start.function.secrets else {}
        joining = become(start, log, secrets)
    except StokerError as error:
        tell_failure(status, error)
        return 1
    return serve(start, (listen, status, *others), Prepared(template), joining, forked_at)


def serve(
    start: WorkerStart,
    descriptors: Sequence[int],
    prepared: Prepared,
    joining: Joining,
    started_at: float,
) -> int:
    """Serves `start` in a process that has become its worker; the exit code.

    `descriptors` are those of the start without its log's.
    """
    listen, status, *pool = descriptors
    with socket.socket(fileno=os.dup(listen)) as listening:
        port = listening.getsockname()[1]
    for name, value in zip(PORT_VARIABLES, (f"{port}", f"127.0.0.1:{port}"), strict=True):
        os.environ.setdefault(name, value)  # the function's own environment counts more
    torch.set_num_threads(start.threads)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            worker = _Worker(start, status, started_at, joining)
            return runner.run(worker.serve(listen, tuple(pool), prepared))
    except BaseException:  # noqa: BLE001 (the process ends here)
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


class _Worker:
    def __init__(
        self, start: WorkerStart, status: int, started_at: float, joining: Joining
    ) -> None:
        self._start = start
        self._status = status
        self._started_at = started_at
        self._joining = joining
        self._exit_code = 0
        self._ready: asyncio.Future[Ready]
        self._ending: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None

    async def serve(self, listen: int, pool: tuple[int, ...], prepared: Prepared) -> int:
        loop = asyncio.get_running_loop()
        if self._start.function.task == "custom":
            loop.set_task_factory(contained_task)
        self._ready = ready = loop.create_future()
        app = WorkerApp(
            self._start.token,
            self._start.instance_id,
            ready,
            self._start.function.scaling.concurrency,
            self._start.started_at,
        )
        self._server = Server(server_config(app))
        loop.add_signal_handler(signal.SIGTERM, self._stop, 0)
        starting = asyncio.ensure_future(self._make_ready(ready, pool, prepared))
        with socket.socket(fileno=listen) as listening:
            await self._server.serve(sockets=[listening])
        starting.cancel()
        if ready.done() and ready.exception() is None and (stop := ready.result().stop):
            await self._end(stop)
        return self._exit_code

    async def _end(self, stop: Callable[[], Awaitable[None]]) -> None:
        """Lets the function clean up; what goes wrong then is only logged."""
        try:
            async with asyncio.timeout(STOP_SECONDS_MAXIMUM):
                await stop()
        except BaseException:  # noqa: BLE001 (the process ends anyway)
            traceback.print_exc()

    async def _make_ready(
        self, ready: asyncio.Future[Ready], pool: tuple[int, ...], prepared: Prepared
    ) -> None:
        try:
            made = await asyncio.to_thread(self._build, prepared, pool)
            if made.start is not None:
                await made.start()
                made = replace(made, at=time.monotonic())
            made = await self._when_it_says_so(made)
        except StokerError as error:
            self._refuse(ready, error)
        except Exception as error:  # noqa: BLE001 (whatever broke must reach the agent)
            traceback.print_exc()
            self._refuse(
                ready,
                StartFailed(
                    f"Expected the function to start, found {type(error).__name__}: {error}.",
                    "The function's log has the traceback.",
                ),
            )
        else:
            # Requests may come in at once; to the node it serves when its weights are all there.
            ready.set_result(replace(made, handler=self._telling(made.handler)))
            try:
                if made.bytes_at is not None:
                    await asyncio.wrap_future(made.bytes_at)
            except StokerError as error:
                self._failed(error)
                return
            init_seconds = made.at - self._started_at
            from_template = prepared.template is not None
            tell(self._status, WorkerStatus("serving", init_seconds, from_template))

    async def _when_it_says_so(self, made: Ready) -> Ready:
        """The function once its ready path has answered, where it has one."""
        probe = ready_probe(self._start.function.annotations)
        if probe is None or probe.path in WATCHDOG_PATHS:
            return made
        readiness = Readiness(probe, made.handler)
        await readiness.begin()
        self._following = asyncio.ensure_future(readiness.follow())
        return replace(made, at=time.monotonic(), accepts=lambda: readiness.holds)

    def _build(self, prepared: Prepared, pool: tuple[int, ...]) -> Ready:
        """In a thread. No user code runs before the control group holds it."""
        if self._start.function.task == "custom":
            self._joining.wait()
        made = build(self._start, prepared, pool, self._lose)
        self._joining.wait()
        return made

    def _telling(self, handler: Handler) -> Handler:
        """The handler; its first call is told, so that a death in it is no failed start."""
        told = False

        async def handle(request: Request) -> Response:
            nonlocal told
            if not told and not request.header("x-stoker-probe"):
                told = True
                tell(self._status, WorkerStatus("called"))
            return await handler(request)

        return handle

    def _refuse(self, ready: asyncio.Future[Ready], error: StokerError) -> None:
        ready.set_exception(error)
        ready.exception()  # requests raise it; without one, asyncio would complain
        self._failed(error)

    def _failed(self, error: StokerError) -> None:
        tell_failure(self._status, error)

    def _lose(self) -> None:
        """The engine has died: so does the worker, unless it was the load that failed.

        Then the agent ends it, and until then it tells the cause to whoever calls.
        """

        async def end() -> None:
            lost = InstanceLost("The engine has died.")
            if await self._ready.result().cause_of(lost) is lost:
                self._stop(1)

        self._ending = asyncio.ensure_future(end())

    def _stop(self, exit_code: int) -> None:
        self._exit_code = exit_code
        self._server.should_exit = True


def tell(pipe: int, status: WorkerStatus) -> None:
    with contextlib.suppress(BrokenPipeError):  # the agent is gone, and we follow it
        os.write(pipe, encode_event(status) + b"\n")


def tell_failure(pipe: int, error: StokerError) -> None:
    sys.stderr.write(f"{error}\n")
    tell(pipe, WorkerStatus("failed", error=error.to_wire()))


def become(start: WorkerStart, log: int, secrets: Mapping[str, bytes]) -> Joining:
    """Own session, own folders, own environment, the log for output, and no way up."""
    os.setsid()
    die_with_parent()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN if number == signal.SIGPIPE else signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    write_output_to(log)
    work_dir = Path(start.work_dir)
    temporary = work_dir / "tmp"
    temporary.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    os.environ.clear()
    os.environ.update(
        kept
        | {"HOME": str(work_dir), "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
        | _identity(start)
        | dict(start.function.environment)
        # Last: the others belong to other instances.
        | {"CUDA_VISIBLE_DEVICES": ",".join(start.devices)}
    )
    joining = Joining(start.sandbox.groups)
    sandbox.enter(start.sandbox.levels, _plan(start, secrets))
    joining.begin()
    os.chdir(start.code_dir or work_dir)
    tempfile.tempdir = None
    # Python seeds its own generator anew in a child; these two would repeat the zygote's.
    random.seed()
    np.random.seed()
    torch.seed()
    return joining


def write_output_to(log: int) -> None:
    """Standard output and error, of this process and its children, go to `log`, which is closed."""
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _plan(start: WorkerStart, secrets: Mapping[str, bytes]) -> sandbox.Plan:
    readable = [sys.prefix]  # an environment's, in a fork of its zygote
    if start.code_dir is not None:
        readable.append(start.code_dir)
    private_bytes = start.sandbox.memory_bytes
    for checkpoint in (start.checkpoint, start.adapter):
        if checkpoint is None:
            continue
        readable += [checkpoint.files_dir, checkpoint.layout_path]
        if private_bytes is not None:
            # The pool is mapped privately, though its pages are shared until they are written.
            private_bytes += checkpoint.byte_count
    return sandbox.Plan(
        work_dir=Path(start.work_dir),
        readable=tuple(readable),
        hidden=start.sandbox.hidden,
        private_bytes=private_bytes,
        secrets=secrets,
    )


def _identity(start: WorkerStart) -> dict[str, str]:
    """What Knative and OpenFaaS tell a function of itself, beside its port."""
    function = start.function
    return {
        "K_SERVICE": function.name,
        "K_CONFIGURATION": function.name,
        "K_REVISION": f"{function.name}-{function.generation:05d}",
        "OPENFAAS_NAME": function.name,
        "OPENFAAS_NAMESPACE": function.namespace,
    }
