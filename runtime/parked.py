r"""Processes that are a function's next instance but for what its start tells.

When a function has served, a process is forked for its next instance: it enters its sandbox and
control groups, then imports the function's code, or runs its model once over weights that read as
zeros. A start reaches it through a socket of its own, so that nothing is forked, imported or built
while somebody waits. It becomes one instance and no other: nothing that code made at import is
shared.

    wish -- 2 s without a start --> forked -- "parked" --> waiting -- take --> an instance
                                       \-- fails, hangs, is too big --> ended, not tried again
"""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import structlog

from stoker.placement.errors import StartFailed, StokerError
from stoker.placement.function_code import kind_in
from stoker.placement.records import FunctionRecord
from stoker.runtime.cgroups import ControlGroups
from stoker.runtime.code_cache import compile_sources
from stoker.runtime.function_logs import FunctionLogs
from stoker.runtime.node import ZygoteFor
from stoker.runtime.parked_worker import ParkedWorker
from stoker.runtime.worker_start import WorkerStart

PARKED_MAXIMUM = 4
PARKED_BYTES_MAXIMUM = 1 << 30
IDLE_SECONDS = 2.0
REFUSED_MAXIMUM = 256
CLOSE_SECONDS_MAXIMUM = 5.0

_log = structlog.get_logger()


class ParkedProcesses:
    """At most one for each function and PARKED_MAXIMUM in all; the ones wished last stay.

    One event loop owns it. Together they hold at most PARKED_BYTES_MAXIMUM that nobody else does.
    `on_change` is called when `ready` may have changed.
    """

    def __init__(
        self,
        zygote_for: ZygoteFor,
        groups: ControlGroups,
        logs: FunctionLogs,
        run_dir: Path,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_change = on_change
        self._zygote_for = zygote_for
        self._groups = groups
        self._logs = logs
        self._folder = run_dir / "instances"
        # Each by the function's path; what is refused is as the function was then.
        self._wishes: OrderedDict[str, WorkerStart] = OrderedDict()
        self._parked: OrderedDict[str, ParkedWorker] = OrderedDict()
        self._refused: OrderedDict[str, FunctionRecord] = OrderedDict()
        self._lives: set[asyncio.Task[None]] = set()
        self._one_at_a_time = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._numbers = itertools.count(1)
        self._is_closed = False

    @property
    def ready(self) -> tuple[str, ...]:
        """The keys of the functions of which a process waits for a start."""
        return tuple(sorted(p.function.key for p in self._parked.values() if p.waits))

    def take(self, function: FunctionRecord) -> ParkedWorker | None:
        """The process that waits for a start of this very function; the caller's from now on."""
        self._rest()
        parked = self._parked.get(function.path)
        if parked is None or not parked.waits or parked.function != _lasting(function):
            return None
        del self._parked[function.path]
        parked.taken = True
        self._on_change()
        return parked

    def wish(self, start: WorkerStart) -> None:
        """The function of `start` has served: a process may be made ready for its next start."""
        function = _lasting(start.function)
        path = function.path
        if self._is_closed or path in self._parked or self._refused.get(path) == function:
            return
        if not _can_be_parked(start):
            return
        self._wishes[path] = replace(start, function=function)
        self._wishes.move_to_end(path)
        while len(self._wishes) > PARKED_MAXIMUM:
            self._wishes.popitem(last=False)
        self._rest()

    def changed(self, path: str, function: FunctionRecord | None) -> None:
        """The function is `function` from now on; None: it is deleted."""
        now = None if function is None else _lasting(function)
        if path in self._wishes and self._wishes[path].function != now:
            del self._wishes[path]
        if path in self._parked and self._parked[path].function != now:
            self._end(path)
        if path in self._refused and self._refused[path] != now:
            del self._refused[path]

    async def close(self) -> None:
        """Ends all that nobody has taken."""
        self._is_closed = True
        self._wishes.clear()
        self._rest()
        for path in list(self._parked):
            self._end(path)
        if self._lives:
            await asyncio.wait(self._lives, timeout=CLOSE_SECONDS_MAXIMUM)

    def _rest(self) -> None:
        """Something happens, or has happened: the next wish waits until nothing does."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._wishes:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(IDLE_SECONDS, self._begin)

    def _begin(self) -> None:
        self._timer = None
        if not self._wishes:  # their functions were changed or deleted
            return
        path, wish = self._wishes.popitem()
        name = f"parked-{next(self._numbers)}"
        start = replace(
            wish,
            instance_id=name,
            token="",  # nobody's yet
            work_dir=str(self._folder / name),
            started_at=0.0,
            checkpoint=wish.checkpoint and replace(wish.checkpoint, chunks=()),
            adapter=wish.adapter and replace(wish.adapter, chunks=()),
        )
        parked = ParkedWorker(start, self._groups, lambda texts: self._write_log(start, texts))
        self._parked[path] = parked
        parked.life = asyncio.ensure_future(self._live(path, parked))
        self._lives.add(parked.life)
        parked.life.add_done_callback(self._lives.discard)
        while len(self._parked) > PARKED_MAXIMUM:
            self._end(next(iter(self._parked)))
        self._rest()

    async def _live(self, path: str, parked: ParkedWorker) -> None:
        """From its fork to its end."""
        try:
            async with self._one_at_a_time:
                if parked.start.code_dir is not None:
                    await asyncio.to_thread(compile_sources, Path(parked.start.code_dir))
                await parked.fork(self._zygote_for)
                try:
                    await parked.be_ready()
                    self._make_room(path, parked)
                    self._write_log(parked.start, [f"{parked.name} is ready for the next start"])
                    self._on_change()
                except StokerError:
                    self._refuse(path, parked.function)
                    raise
            await parked.ended()
        except StokerError as error:
            self._write_log(parked.start, [f"{parked.name} is not kept for a start: {error}"])
        except Exception:  # noqa: BLE001 - a bug, or a full disk: instances start without it
            _log.exception("parking_failed", function=parked.function.key)
        finally:
            if self._parked.get(path) is parked:
                del self._parked[path]
            self._on_change()
            await parked.release()

    def _make_room(self, path: str, parked: ParkedWorker) -> None:
        if parked.private_bytes > PARKED_BYTES_MAXIMUM:
            raise StartFailed(
                f"Expected a process that waits to hold at most {PARKED_BYTES_MAXIMUM:,} bytes, "
                f"found {parked.private_bytes:,}.",
                "Import less, or load data when the function is first called.",
            )
        others = [other for other in self._parked if other != path]
        while others and sum(p.private_bytes for p in self._parked.values()) > PARKED_BYTES_MAXIMUM:
            self._end(others.pop(0))

    def _refuse(self, path: str, function: FunctionRecord) -> None:
        self._refused[path] = function
        while len(self._refused) > REFUSED_MAXIMUM:
            self._refused.popitem(last=False)

    def _end(self, path: str) -> None:
        life = self._parked.pop(path).life
        assert life is not None  # it was set when the process was put there
        life.cancel()

    def _write_log(self, start: WorkerStart, texts: list[str]) -> None:
        try:
            self._logs.append(start.function.key, start.instance_id, texts)
        except OSError as error:
            _log.warning("function_log_failed", function=start.function.key, cause=str(error))


def _lasting(function: FunctionRecord) -> FunctionRecord:
    """The function without what changes while it stays what it is."""
    return replace(function, replicas_requested=None)


def _can_be_parked(start: WorkerStart) -> bool:
    """Not with devices: its code, imported ahead, might take one that is somebody else's. Not with
    secrets: they are read when the instance starts, and wait in no process. A classic function has
    nothing to make ready: each of its requests is a process. Code beside a model would have to be
    made ready together with it.
    """
    if start.devices or start.function.secrets:
        return False
    if start.function.task != "custom":
        return start.checkpoint is not None
    if start.code_dir is None or start.checkpoint is not None:
        return False
    return kind_in(Path(start.code_dir), start.function.annotations) != "process"
