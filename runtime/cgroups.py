"""Control groups, version 1 and 2: what holds an instance to its memory, processes and cores.

The agent makes a group per instance inside its own group, so that whatever holds the agent holds
them all; the worker moves into it before it runs user code, and its children are born there. What
was allocated before, and what another process touched first (the pool, so the weights), is not
charged to it.

    <the agent's own group>/stoker-<agent's pid>-<instance>

In version 1 each controller has a tree of its own; which ones there are finds cgroup_trees.py.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil
import structlog

from stoker.placement.errors import StartFailed
from stoker.placement.resources import Limits

Controller = Literal["memory", "pids", "cpu"]
CONTROLLERS: tuple[Controller, ...] = ("memory", "pids", "cpu")
PIDS_DEFAULT = 1024
"""Processes and threads of an instance whose spec states none: no fork bomb takes the node."""

_PERIOD_MICROSECONDS = 100_000
_PREFIX = "stoker-"
_REMOVE_TRIES = 40
_REMOVE_SECONDS = 0.05

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One tree of control groups: `folder` is our own group in it."""

    version: Literal[1, 2]
    folder: Path
    controllers: tuple[Controller, ...]

    @property
    def join_name(self) -> str:
        """The file to write 0 to.

        A process of one thread that moves its thread, where that is allowed, does not wait for
        the kernel to halt all forks (0.1 instead of 8 ms); with version 2 it is not allowed.
        """
        return "tasks" if self.version == 1 else "cgroup.procs"

    def settings(self, limits: Limits) -> dict[str, str]:
        """File name to text; those in `_OPTIONAL` are not in every kernel."""
        texts: dict[str, str] = {}
        if "pids" in self.controllers:
            texts["pids.max"] = str(limits.pids or PIDS_DEFAULT)
        if "memory" in self.controllers and limits.memory_bytes is not None:
            names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
            most = str(limits.memory_bytes)
            if self.version == 1:
                texts |= dict.fromkeys(names, most)  # in this order: the second is never below
            else:
                texts |= {"memory.max": most, "memory.swap.max": "0"}
        if "cpu" in self.controllers and limits.cores is not None:
            quota = max(1000, round(limits.cores * _PERIOD_MICROSECONDS))
            if self.version == 1:
                texts["cpu.cfs_quota_us"] = str(quota)
            else:
                texts["cpu.max"] = f"{quota} {_PERIOD_MICROSECONDS}"
        return texts


_OPTIONAL = {"memory.memsw.limit_in_bytes", "memory.swap.max"}


@dataclass(slots=True)
class Group:
    """The groups of one instance. `join_paths` is where its worker writes itself down."""

    folders: list[Path] = field(default_factory=list)
    join_paths: list[str] = field(default_factory=list)
    limits: Limits = field(default_factory=Limits)

    def memory_story(self) -> str | None:
        """What the kernel's killing in this group was for; None if it killed nothing there."""
        for folder in self.folders:
            for name in ("memory.events", "memory.oom_control"):
                killed = re.search(r"^oom_kill (\d+)$", read(folder / name), re.MULTILINE)
                if killed is not None and int(killed[1]) > 0:
                    return self._story(folder)
        return None

    def _story(self, folder: Path) -> str:
        peak = read(folder / "memory.peak") or read(folder / "memory.max_usage_in_bytes")
        held = f"it held {int(peak):,} bytes" if peak.isdecimal() else "it held them all"
        return (
            f"Expected at most {self.limits.memory_bytes or 0:,} bytes of memory (limits.memory), "
            f"found that the function asked for more when {held}, and was killed."
        )

    def pids_story(self) -> str | None:
        """How often a process or thread was refused; None if it never was."""
        for folder in self.folders:
            refused = re.search(r"^max (\d+)$", read(folder / "pids.events"), re.MULTILINE)
            if refused is not None and int(refused[1]) > 0:
                return (
                    f"Expected at most {self.limits.pids or PIDS_DEFAULT} processes and threads "
                    f"(limits.pids), found that {refused[1]} more were wanted and refused."
                )
        return None

    def remove(self) -> None:
        """Kills what is left in the group and removes it; blocks for 2 s at most.

        Version 1 cannot tell when a group becomes empty, so it is tried again and again.
        """
        for folder in self.folders:
            for _ in range(_REMOVE_TRIES):
                try:
                    folder.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    _kill_all(folder)
                    time.sleep(_REMOVE_SECONDS)
            else:
                _log.warning("control_group_survives", folder=str(folder))


class ControlGroups:
    """What this node can hold its instances to; `missing` says why it cannot hold them to more."""

    def __init__(self, hierarchies: Sequence[Hierarchy], missing: Mapping[str, str]) -> None:
        self._hierarchies = tuple(hierarchies)
        self.missing = dict(missing)

    @property
    def levels(self) -> tuple[str, ...]:
        """`cgroup-memory`, `cgroup-pids` and `cgroup-cpu`, as far as they are there."""
        found = {name for hierarchy in self._hierarchies for name in hierarchy.controllers}
        return tuple(f"cgroup-{name}" for name in CONTROLLERS if name in found)

    def create(self, instance_id: str, limits: Limits) -> Group:
        """A group with these limits; StartFailed if the kernel refuses. Blocks for a moment."""
        group = Group(limits=limits)
        for hierarchy in self._hierarchies:
            settings = hierarchy.settings(limits)
            if not settings:
                continue
            folder = hierarchy.folder / f"{_PREFIX}{os.getpid()}-{instance_id}"
            try:
                folder.mkdir(exist_ok=True)
                group.folders.append(folder)
                for name, text in settings.items():
                    if name not in _OPTIONAL or (folder / name).exists():
                        (folder / name).write_text(text)
            except OSError as error:
                group.remove()
                raise StartFailed(
                    f"Expected to limit {instance_id} by the control group {folder}, "
                    f"found: {error.strerror}.",
                    "See `stoker doctor`; restart the agent if the machine was changed meanwhile.",
                ) from error
            group.join_paths.append(str(folder / hierarchy.join_name))
        return group

    def remove_leftovers(self) -> None:
        """Removes the groups of agents that are gone."""
        for hierarchy in self._hierarchies:
            for folder in hierarchy.folder.glob(f"{_PREFIX}*-*"):
                pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
                if pid.isdecimal() and not psutil.pid_exists(int(pid)):
                    Group([folder]).remove()


class Joining:
    """The move of this process, which has one thread, into the groups of these `join_paths`.

    What is slow, with version 2, is left to `begin`: it works in the background until `wait`. The
    files are opened here, since a sandbox may be entered in between.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._late: list[int] = []
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._write_late, name="join-groups", daemon=True)
        try:
            for path in paths:
                descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
                if path.endswith("/tasks"):
                    _write_self(descriptor)
                else:
                    self._late.append(descriptor)
        except OSError as error:
            raise _not_joined(error) from error

    def begin(self) -> None:
        if self._late:
            self._thread.start()

    def wait(self) -> None:
        """Returns when this process is in its groups; StartFailed when it cannot be."""
        if self._late:
            self._thread.join()
        if self._error is not None:
            raise _not_joined(self._error) from self._error

    def _write_late(self) -> None:
        try:
            for descriptor in self._late:
                _write_self(descriptor)
        except OSError as error:
            self._error = error


def _write_self(descriptor: int) -> None:
    with open(descriptor, "wb", buffering=0) as file:
        file.write(b"0")


def _not_joined(error: OSError) -> StartFailed:
    return StartFailed(
        f"Expected to join the control groups of the instance, found: {error.strerror}.",
        "See `stoker doctor`; restart the agent if the machine was changed meanwhile.",
    )


def _kill_all(folder: Path) -> None:
    for text in read(folder / "cgroup.procs").split():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(int(text), signal.SIGKILL)


def read(path: Path) -> str:
    """The text of a control file, "" where there is none."""
    try:
        return path.read_text().strip()
    except OSError:  # not with this controller, version or kernel
        return ""
