"""Processes that are functions but for their weights, waiting for a start to be theirs.

A parked process is a fork of its zygote that has run its template once over weights that read as
zeros: threads, kernels and caches are as warm as after a first request. A start reaches it with
its descriptors through its own socket, so that nothing is forked while somebody waits.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from stoker.runtime import sandbox, worker
from stoker.runtime.template import ModelTemplate, TemplateKey
from stoker.runtime.worker_start import (
    DESCRIPTORS_MAXIMUM,
    MESSAGE_BYTES_MAXIMUM,
    WorkerStart,
    decode_start,
)

PARKED_MAXIMUM = 4


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    control: socket.socket


class ParkedProcesses:
    """At most one for each template, and PARKED_MAXIMUM in all: those started last stay."""

    def __init__(self) -> None:
        self._processes: OrderedDict[TemplateKey, _Process] = OrderedDict()
        self._unreaped: set[int] = set()

    def __contains__(self, key: TemplateKey) -> bool:
        return key in self._processes

    def park(
        self,
        key: TemplateKey,
        template: ModelTemplate,
        threads: int,
        levels: tuple[str, ...],
        plan: sandbox.Plan,
        leave: Callable[[], None],
    ) -> None:
        """Forks one, which calls `leave` first. Whoever was parked first makes room.

        It enters `levels` of its sandbox by `plan`, before it has more threads than one.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    ours.close()
                    leave()
                    worker.die_with_parent()
                    if os.getppid() == parent:
                        _enter(levels, plan)
                        code = _wait_and_run(theirs, template, threads, plan.work_dir)
                finally:
                    os._exit(code)
        self._processes[key] = _Process(pid, ours)
        self._unreaped.add(pid)
        while len(self._processes) > PARKED_MAXIMUM:
            self._end(self._processes.popitem(last=False)[1])

    def hand_over(self, key: TemplateKey, message: bytes, descriptors: Sequence[int]) -> int | None:
        """Gives a start to the process parked for it; its pid, or None where there is none."""
        process = self._processes.pop(key, None)
        if process is None:
            return None
        try:
            process.control.recv(1, socket.MSG_DONTWAIT)
            socket.send_fds(process.control, [message], list(descriptors))
        except BlockingIOError:  # it still rehearses, which takes longer than a fork
            self._processes[key] = process
            return None
        except OSError:  # it has died
            process.control.close()
            return None
        process.control.close()
        self._unreaped.discard(process.pid)  # from now on it is its instance's
        return process.pid

    def reap(self) -> None:
        """Takes note of those that have ended."""
        for pid in tuple(self._unreaped):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                continue
            self._unreaped.discard(pid)
            for key, process in tuple(self._processes.items()):
                if process.pid == pid:
                    del self._processes[key]
                    process.control.close()

    def leave(self) -> None:
        """In another child: closes its copies of the sockets."""
        for process in self._processes.values():
            process.control.close()

    def _end(self, process: _Process) -> None:
        process.control.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def _enter(levels: tuple[str, ...], plan: sandbox.Plan) -> None:
    (plan.work_dir / "tmp").mkdir(parents=True, exist_ok=True)
    sandbox.enter(levels, plan)


def _wait_and_run(
    control: socket.socket, template: ModelTemplate, threads: int, work_dir: Path
) -> int:
    torch.set_num_threads(threads)
    template.rehearse()
    control.send(b"1")
    message, descriptors, _, _ = socket.recv_fds(
        control, MESSAGE_BYTES_MAXIMUM, DESCRIPTORS_MAXIMUM
    )
    control.close()
    if not message:
        return 0
    start = decode_start(message)
    assert isinstance(start, WorkerStart)  # its zygote has looked
    return worker.run(start, descriptors, template, work_dir)
