"""The environments of functions on this node: each built once, found by what is in it.

    directory/<digest>/bin, lib, …   a virtual environment over the node's own packages
    directory/<digest>/complete      exists exactly if it may be used
    directory/.removing-<digest>     on its way out

The digest is that of the requirements and of all that they were resolved against (interpreter,
installed packages), so functions that ask for the same share one. At most one build runs per
digest, and `BUILDS_AT_ONCE` in all.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import orjson
import structlog

from stoker.placement.errors import BadSpec, StartFailed, StokerError
from stoker.placement.function_packages import packages_of
from stoker.placement.requirements import Requirements
from stoker.runtime.environment_build import COMPLETE_NAME, commit, create, install
from stoker.runtime.installed import Installed, owners_of

BYTES_MAXIMUM = 10 << 30
KEPT_MAXIMUM = 64
BUILDS_AT_ONCE = 2
RETRY_SECONDS_MINIMUM = 10.0
RETRY_SECONDS_MAXIMUM = 300.0
FAILURES_MAXIMUM = 256
_REMOVING_PREFIX = ".removing-"

_log = structlog.get_logger()

Log = Callable[[list[str]], None]
"""Takes lines for the log of the function that waits."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What one requirements.txt asks for here; `folder` may not be built yet."""

    digest: str
    folder: Path
    requirements: Requirements

    @property
    def complete_path(self) -> Path:
        return self.folder / COMPLETE_NAME


@dataclass(frozen=True, slots=True)
class _Failure:
    error: StokerError
    pause_seconds: float
    until: float


class Environments:
    """One event loop owns it. `environment` is the agent's: of it, pip gets its settings alone.

    `imported` gives the modules that the node's zygote has imported, once it has.
    """

    def __init__(
        self,
        directory: Path,
        environment: Mapping[str, str],
        imported: Callable[[], Awaitable[Collection[str]]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._environment = environment
        self._imported = imported
        self._clock = clock
        self._installed: Installed | None = None
        self._reading = Lock()
        self._builds: dict[str, asyncio.Task[_Failure | None]] = {}
        self._slots = asyncio.Semaphore(BUILDS_AT_ONCE)
        self._failures: OrderedDict[str, _Failure] = OrderedDict()
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in directory.iterdir():
            if folder.name.startswith(_REMOVING_PREFIX):
                shutil.rmtree(folder, ignore_errors=True)
            elif not (folder / COMPLETE_NAME).exists():
                # Out of the way first: the pip of a killed agent may live a little longer.
                shutil.rmtree(self._set_aside(folder), ignore_errors=True)

    async def find(self, code_dir: Path) -> Environment | None:
        """The environment that the code in this folder asks for; None if the node's own will do.

        StartFailed when its requirements.txt is refused.
        """
        return await asyncio.to_thread(self._find, code_dir)

    async def ready(self, wanted: Environment, log: Log) -> bool:
        """Returns when it is built, whether it had to be; StokerError with pip's lines, which
        `log` gets too.

        A build that failed is not tried again for a while, but its error raised. A build goes on
        when nobody waits for it any more: the next start will want it.
        """
        with contextlib.suppress(FileNotFoundError):
            os.utime(wanted.complete_path)
            return False
        failure = self._failures.get(wanted.digest)
        if failure is None or self._clock() >= failure.until:
            log([f"installing the packages that the code asks for into {wanted.digest[:12]}"])
            failure = await asyncio.shield(self._building(wanted))
            if failure is None:
                return True
        error = StokerError.from_wire(failure.error.to_wire())
        error.retry_after_seconds = max(1.0, round(failure.until - self._clock(), 1))
        log([str(line) for line in error.details.get("output", ())])
        raise error

    async def trim(self, in_use: Collection[str]) -> None:
        """Removes what was used longest ago until the rest is within the bounds."""
        for folder in self._surplus(in_use):
            # At once, so that a start that comes now does not find it.
            target = self._set_aside(folder)
            await asyncio.to_thread(shutil.rmtree, target, ignore_errors=True)

    async def close(self) -> None:
        """Ends every build; what they leave is removed at the next start."""
        builds = list(self._builds.values())
        for building in builds:
            building.cancel()
        if builds:
            await asyncio.wait(builds)

    def _set_aside(self, folder: Path) -> Path:
        target = self._directory / f"{_REMOVING_PREFIX}{folder.name}-{time.monotonic_ns()}"
        return folder.rename(target)

    def _find(self, code_dir: Path) -> Environment | None:
        try:
            requirements = packages_of(lambda name: _read(code_dir / name))
        except BadSpec as error:
            raise StartFailed(error.cause, error.remedy) from error
        if requirements is None or not requirements.packages:
            return None
        installed = self._read_installed()
        if installed.satisfies(requirements.packages):
            return None
        asked = orjson.dumps([installed.fingerprint, requirements.lines])
        digest = hashlib.sha256(asked).hexdigest()
        return Environment(digest, self._directory / digest, requirements)

    def _read_installed(self) -> Installed:
        with self._reading:
            self._installed = self._installed or Installed.read()
            return self._installed

    def _building(self, wanted: Environment) -> asyncio.Task[_Failure | None]:
        """The one build of what is wanted."""
        building = self._builds.get(wanted.digest)
        if building is None:
            building = self._builds[wanted.digest] = asyncio.create_task(self._build(wanted))
            building.add_done_callback(lambda _: self._builds.pop(wanted.digest, None))
        return building

    async def _build(self, wanted: Environment) -> _Failure | None:
        """Builds it, and returns why that failed."""
        began = self._clock()
        async with self._slots:
            try:
                await asyncio.to_thread(self._create, wanted, await self._imported())
                await install(wanted.folder, self._environment)
                byte_count = await asyncio.to_thread(commit, wanted.folder)
            except (StokerError, OSError, ValueError) as error:
                await asyncio.to_thread(shutil.rmtree, wanted.folder, ignore_errors=True)
                return self._remember(wanted, error)
        self._failures.pop(wanted.digest, None)
        seconds = round(self._clock() - began, 1)
        _log.info("environment_built", digest=wanted.digest, seconds=seconds, bytes=byte_count)
        return None

    def _create(self, wanted: Environment, imported: Collection[str]) -> None:
        installed = self._read_installed()
        pins = installed.pins(owners_of(imported))
        create(wanted.folder, wanted.requirements.lines, pins, installed.folders)

    def _remember(self, wanted: Environment, error: Exception) -> _Failure:
        if not isinstance(error, StokerError):
            error = StartFailed(
                f"Expected to build an environment in {wanted.folder}, found: {error}.",
                "Look at the node's disk and at the rights of its state directory.",
            )
        before = self._failures.pop(wanted.digest, None)
        pause_seconds = RETRY_SECONDS_MINIMUM if before is None else 2 * before.pause_seconds
        pause_seconds = min(pause_seconds, RETRY_SECONDS_MAXIMUM)
        failure = _Failure(error, pause_seconds, self._clock() + pause_seconds)
        self._failures[wanted.digest] = failure
        while len(self._failures) > FAILURES_MAXIMUM:
            self._failures.popitem(last=False)
        _log.warning("environment_failed", digest=wanted.digest, cause=error.cause)
        return failure

    def _surplus(self, in_use: Collection[str]) -> list[Path]:
        """Environments over the bounds that nobody uses, the one unused for longest first."""
        found = sorted(
            (path.stat().st_mtime, orjson.loads(path.read_bytes())["bytes"], path)
            for path in self._directory.glob(f"[!.]*/{COMPLETE_NAME}")
        )
        byte_count, count, surplus = sum(each[1] for each in found), len(found), []
        for _, bytes_of, path in found:
            if byte_count <= BYTES_MAXIMUM and count <= KEPT_MAXIMUM:
                break
            if path.parent.name not in in_use:
                surplus.append(path.parent)
                byte_count, count = byte_count - bytes_of, count - 1
        return surplus


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        return None
