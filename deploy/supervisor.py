"""Keeps a few processes alive, and leaves none behind.

Invariants:

- A child is killed by the kernel when the supervisor dies, however that happens.
- The supervisor is the subreaper: whatever a child leaves behind becomes its own child, so
  "no descendant is left" is one fact that the kernel answers (waitpid says ECHILD).
- Nothing is polled: SIGCHLD and the stop signals arrive through one wakeup descriptor, and
  restarts are deadlines of the same wait.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from stoker.placement.errors import StartFailed

LONG_LIFE_SECONDS = 30.0
QUICK_DEATHS_MAXIMUM = 5
RESTART_DELAY_SECONDS_MINIMUM = 0.1
RESTART_DELAY_SECONDS_MAXIMUM = 5.0
LOGS_KEPT = 3
KILL_SECONDS_MAXIMUM = 5.0

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A program to keep running; `log_path` receives its output, it inherits `descriptors`."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    log_path: Path
    descriptors: tuple[int, ...] = ()


class Readiness(Protocol):
    def look(self, now: float) -> float | None:
        """Look once; the seconds until it wants to look again, or None when all is ready.

        Raises a StokerError when readiness is not to be expected any more.
        """


@dataclass(slots=True)
class _Child:
    spec: ChildSpec
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    quick_deaths: int = 0
    restart_at: float | None = None


def restart_delay_seconds(quick_deaths: int) -> float | None:
    """How long to wait before the next start after so many quick deaths; None: give up."""
    if quick_deaths >= QUICK_DEATHS_MAXIMUM:
        return None
    delay = RESTART_DELAY_SECONDS_MINIMUM * 4.0 ** max(0, quick_deaths - 1)
    return min(RESTART_DELAY_SECONDS_MAXIMUM, delay)


def describe_status(status: int) -> str:
    """A wait status in words: `exit status 3` or `signal SIGKILL`."""
    code = os.waitstatus_to_exitcode(status)
    return f"exit status {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def rotate_log(path: Path, kept: int = LOGS_KEPT) -> None:
    """Move `path` to `path.1`, `path.1` to `path.2`, and so on; the oldest is dropped."""
    for number in range(kept, 0, -1):
        source = path if number == 1 else path.with_name(f"{path.name}.{number - 1}")
        if source.exists():
            source.replace(path.with_name(f"{path.name}.{number}"))


class Supervisor:
    """Runs `specs` until a stop signal; needs the main thread of a process without others.

    `specs` are in the order in which they are stopped; they are started in the reverse order.
    """

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        tell: Callable[[str], None],
        *,
        stop_seconds: float = 10.0,
    ) -> None:
        self._children = [_Child(spec) for spec in specs]
        self._tell = tell
        self._stop_seconds = stop_seconds
        self._wakeup_reader: socket.socket | None = None
        self._stop_signals_seen = 0

    def run(self, readiness: Readiness) -> None:
        """Start all, restart what dies, return after a stop signal with no process left.

        Raises StartFailed when a child keeps dying, and whatever `readiness` raises; every
        process is stopped before.
        """
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        with self._signals():
            try:
                self._supervise(readiness)
            finally:
                self._stop()

    def _supervise(self, readiness: Readiness) -> None:
        for child in reversed(self._children):
            rotate_log(child.spec.log_path)
            self._start(child)
        look_at: float | None = time.monotonic()
        while not self._stop_signals_seen:
            now = time.monotonic()
            if look_at is not None and now >= look_at:
                wait_seconds = readiness.look(now)
                now = time.monotonic()
                look_at = None if wait_seconds is None else now + wait_seconds
            for child in self._children:
                if child.restart_at is not None and now >= child.restart_at:
                    self._start(child)
            restarts = [child.restart_at for child in self._children]
            deadlines = [at for at in (look_at, *restarts) if at is not None]
            self._wait(max(0.0, min(deadlines) - now) if deadlines else None)
            for child, status in self._reap():
                self._plan_restart(child, status)

    def _start(self, child: _Child) -> None:
        spec = child.spec
        try:
            # No thread runs here and the tether only calls prctl and getppid: preexec_fn is safe.
            with open(spec.log_path, "ab", opener=_open_private) as log:
                child.process = subprocess.Popen(
                    spec.argv,
                    env=dict(spec.environment),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=spec.descriptors,
                    start_new_session=True,
                    preexec_fn=_tether(os.getpid()),
                )
        except (OSError, subprocess.SubprocessError) as error:
            raise StartFailed(
                f"Expected to start {spec.argv[0]} as {spec.name}, found: {error}.",
                "Look at the permissions of the program and of the log folder.",
            ) from error
        child.started_at = time.monotonic()
        child.restart_at = None

    def _plan_restart(self, child: _Child, status: int) -> None:
        now = time.monotonic()
        spec = child.spec
        lived_long = now - child.started_at >= LONG_LIFE_SECONDS
        child.quick_deaths = 0 if lived_long else child.quick_deaths + 1
        delay = restart_delay_seconds(child.quick_deaths)
        if delay is None:
            raise StartFailed(
                f"The process {spec.name} ended {child.quick_deaths} times in a row within "
                f"{LONG_LIFE_SECONDS:.0f} s of its start, last with {describe_status(status)}"
                f"{_last_words(spec.log_path)}.",
                f"Read {spec.log_path}.",
            )
        child.restart_at = now + delay
        self._kill_orphans()
        self._tell(f"{spec.name} ended with {describe_status(status)}; starting it again")

    def _stop(self) -> None:
        for child in self._children:
            if child.process is None:
                continue
            os.kill(child.process.pid, signal.SIGTERM)
            if not self._ends_in_time(child):
                os.killpg(child.process.pid, signal.SIGKILL)
                self._tell(f"{child.spec.name} did not stop in time and was killed")
        deadline = time.monotonic() + KILL_SECONDS_MAXIMUM
        self._reap()
        while self._kill_orphans() and (remaining := deadline - time.monotonic()) > 0:
            self._wait(remaining)
            self._reap()

    def _ends_in_time(self, child: _Child) -> bool:
        """Wait for the end of a child that was told to stop; a second signal ends the patience."""
        deadline = time.monotonic() + self._stop_seconds
        while True:
            self._reap()
            if child.process is None:
                return True
            remaining = deadline - time.monotonic()
            if remaining <= 0 or self._stop_signals_seen >= 2:
                return False
            self._wait(remaining)

    def _reap(self) -> list[tuple[_Child, int]]:
        """Collect every dead process; the children of ours among them, with their status."""
        by_pid = {c.process.pid: c for c in self._children if c.process is not None}
        dead: list[tuple[_Child, int]] = []
        while (pid := _next_zombie()) is not None:
            child = by_pid.get(pid)
            if child is not None:
                # While the leader is not reaped its number cannot name another group.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            if child is not None and child.process is not None:
                child.process.returncode = os.waitstatus_to_exitcode(status)
                child.process = None
                dead.append((child, status))
        return dead

    def _kill_orphans(self) -> bool:
        """SIGKILL every descendant that no living child of ours answers for; was there any?"""
        ours = {child.process.pid for child in self._children if child.process is not None}
        found = False
        for process in psutil.Process().children():
            if process.pid in ours:
                continue
            found = True
            with contextlib.suppress(psutil.Error):
                for descendant in (process, *process.children(recursive=True)):
                    descendant.kill()
        return found

    def _wait(self, timeout_seconds: float | None) -> None:
        """Sleep until a signal or the deadline, and count the stop signals."""
        assert self._wakeup_reader is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._wakeup_reader, selectors.EVENT_READ)
            if selector.select(timeout_seconds):
                numbers = self._wakeup_reader.recv(4096)
                self._stop_signals_seen += sum(number in _STOP_SIGNALS for number in numbers)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        self._wakeup_reader = reader
        previous_descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        numbers = (signal.SIGCHLD, *_STOP_SIGNALS)
        previous = {number: signal.signal(number, _ignore) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(previous_descriptor)
            self._wakeup_reader = None
            reader.close()
            writer.close()


def _ignore(*_: object) -> None:
    """Do nothing: a handler must exist for the signal to reach the wakeup descriptor."""


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _next_zombie() -> int | None:
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if found is None else found.si_pid


def _tether(supervisor_pid: int) -> Callable[[], None]:
    def tether() -> None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor_pid:  # the supervisor died before the line above
            os._exit(1)

    return tether


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        raise StartFailed(
            f"Expected prctl({option}) to succeed, found: {os.strerror(ctypes.get_errno())}.",
            "Run `stoker up` on Linux, where it is not forbidden to set it.",
        )


def _last_words(log_path: Path, characters: int = 300) -> str:
    with contextlib.suppress(OSError):
        lines = log_path.read_bytes()[-65536:].decode(errors="replace").strip().splitlines()
        if lines:
            return f", saying {lines[-1].strip()[:characters]!r}"
    return ""


def python_module(module: str) -> tuple[str, ...]:
    """The command that runs a module of ours; -P keeps the working directory off its path."""
    return (sys.executable, "-P", "-m", module)
