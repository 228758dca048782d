"""Which zygote forks a worker: the node's own, or that of the environment its code asks for.

An environment's zygote is started when a function first needs it, and serves every function with
the same requirements. It stays while anybody starts from it or a worker of it lives, since its
workers end with it; `IDLE_MAXIMUM` of them stay `IDLE_SECONDS` longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from stoker.placement.errors import StokerError
from stoker.runtime.environments import Environment, Environments, Log
from stoker.runtime.node import Zygote
from stoker.runtime.worker_start import ParkStart, WorkerStart
from stoker.runtime.zygote_client import ForkedWorker, ZygoteClient

IDLE_SECONDS = 300.0
IDLE_MAXIMUM = 8


class _Held:
    """The zygote of one environment, and how many starts and workers need it."""

    def __init__(self, digest: str) -> None:
        self.digest = digest
        self.users = 0
        self.client: ZygoteClient | None = None
        self.life: asyncio.Task[None] | None = None
        self.end: asyncio.TimerHandle | None = None


class _Lease:
    """What a start gets of a zygote that is held: its workers hold it on."""

    def __init__(self, zygote: ZygoteClient, hold: Callable[[ForkedWorker], None]) -> None:
        self._zygote = zygote
        self._hold = hold

    async def start(
        self, start: WorkerStart | ParkStart, descriptors: Sequence[int]
    ) -> ForkedWorker:
        worker = await self._zygote.start(start, descriptors)
        self._hold(worker)
        return worker


class _Refusal:
    """Forks a worker that tells whoever waits for it why it cannot serve."""

    def __init__(self, zygote: ZygoteClient, error: StokerError) -> None:
        self._zygote = zygote
        self._error = error

    async def start(
        self, start: WorkerStart | ParkStart, descriptors: Sequence[int]
    ) -> ForkedWorker:
        if isinstance(start, ParkStart):  # nobody waits
            raise self._error
        failed = replace(start, failure=self._error.to_wire())
        return await self._zygote.start(failed, descriptors)


class Zygotes:
    """`run` keeps the node's own zygote alive, and ends all of them when it is cancelled."""

    def __init__(
        self,
        own: ZygoteClient,
        environments: Environments,
        zygote_of: Callable[[Environment], ZygoteClient],
    ) -> None:
        self._own = own
        self._environments = environments
        self._zygote_of = zygote_of
        self._held: dict[str, _Held] = {}
        self._lives: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        try:
            await self._own.run()
        finally:
            for held in list(self._held.values()):
                self._end(held)
            if self._lives:
                await asyncio.wait(self._lives)
            await self._environments.close()

    @asynccontextmanager
    async def lease(self, code_dir: Path | None, log: Log) -> AsyncIterator[Zygote]:
        """A zygote for the code in this folder, whose environment is built if it is not there.

        Where that fails, it forks workers that say why; `log` gets the lines of it.
        """
        held = None
        try:
            zygote: Zygote = self._own
            try:
                wanted = None if code_dir is None else await self._environments.find(code_dir)
                if wanted is not None:
                    held = self._hold(wanted.digest)
                    zygote = await self._in_environment(held, wanted, log)
            except StokerError as error:
                zygote = _Refusal(self._own, error)
            yield zygote
        finally:
            if held is not None:
                self._let_go(held)

    def _hold(self, digest: str) -> _Held:
        held = self._held.setdefault(digest, _Held(digest))
        held.users += 1
        if held.end is not None:
            held.end.cancel()
            held.end = None
        return held

    async def _in_environment(self, held: _Held, wanted: Environment, log: Log) -> Zygote:
        if await self._environments.ready(wanted, log):
            await self._environments.trim(self._held)
        if held.client is None:
            held.client = self._zygote_of(wanted)
            held.life = asyncio.create_task(held.client.run())
            self._lives.add(held.life)
            held.life.add_done_callback(self._lives.discard)
        return _Lease(held.client, lambda worker: self._follow(held, worker))

    def _follow(self, held: _Held, worker: ForkedWorker) -> None:
        held.users += 1
        worker.exited.add_done_callback(lambda _: self._let_go(held))

    def _let_go(self, held: _Held) -> None:
        held.users -= 1
        if held.users or self._held.get(held.digest) is not held:
            return
        if held.client is None or not held.client.ready:
            self._end(held)  # one that does not get ready is not tried for nobody
            return
        held.end = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._end, held)
        idle = [each for each in self._held.values() if each.end is not None]
        if len(idle) > IDLE_MAXIMUM:
            self._end(min(idle, key=lambda each: each.end.when() if each.end else 0.0))

    def _end(self, held: _Held) -> None:
        del self._held[held.digest]
        if held.end is not None:
            held.end.cancel()
        if held.life is not None:
            held.life.cancel()
