"""The zygote: a process with everything imported, which forks a worker for every message.

`python -m stoker.runtime.zygote FD` serves the SOCK_SEQPACKET socket FD (see worker_start.py)
until it closes. It has one thread, opens no other socket and never touches a device, so that a
fork of it is sound. When it has had nothing to do for a while it prepares the checkpoints of its
last starts (tokenizer, skeleton), so that their next instance finds them made.
"""

from __future__ import annotations

import gc
import os
import selectors
import signal
import socket
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import structlog

from stoker.placement.errors import BadRequest, StartFailed, StokerError
from stoker.runtime import worker
from stoker.runtime.engine.preload import preload
from stoker.runtime.worker_function import Prepared, prepare
from stoker.runtime.worker_start import (
    MESSAGE_BYTES_MAXIMUM,
    WorkerStart,
    ZygoteEvent,
    decode_start,
    encode_event,
)

IDLE_SECONDS = 2.0
PREPARED_MAXIMUM = 8
DESCRIPTORS_MAXIMUM = 5

_log = structlog.get_logger()


class PreparedModels:
    """What the last few checkpoints need beside their weights, made when there is time."""

    def __init__(self) -> None:
        self._made: OrderedDict[tuple[str, str], Prepared | None] = OrderedDict()
        self._wanted: OrderedDict[tuple[str, str], Path] = OrderedDict()

    @property
    def has_work(self) -> bool:
        return bool(self._wanted)

    def take(self, start: WorkerStart) -> Prepared | None:
        """What is ready for `start`; if nothing is, it will be next time."""
        if start.checkpoint is None or start.function.task == "custom":
            return None
        key = (start.checkpoint.digest, start.function.task)
        if key in self._made:
            self._made.move_to_end(key)
            return self._made[key]
        self._wanted[key] = Path(start.checkpoint.files_dir)
        while len(self._wanted) > PREPARED_MAXIMUM:
            self._wanted.popitem(last=False)
        return None

    def work(self) -> None:
        """Prepares one checkpoint. One that cannot be is left to its worker, which says why."""
        key, files_dir = self._wanted.popitem()
        try:
            self._made[key] = prepare(files_dir, key[1])
        except Exception as error:  # noqa: BLE001 (a zygote outlives any checkpoint)
            _log.warning("prepare_failed", digest=key[0], cause=str(error))
            self._made[key] = None
        while len(self._made) > PREPARED_MAXIMUM:
            self._made.popitem(last=False)
        freeze()


def freeze() -> None:
    """Moves all objects out of the collector's sight: it would copy their pages in each child."""
    gc.collect()
    gc.freeze()


class Zygote:
    """The fork server's loop over its socket and its children's ends."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._prepared = PreparedModels()
        self._instances: dict[int, str] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._signals, self._wakeup = socket.socketpair()
        self._signals.setblocking(False)
        self._wakeup.setblocking(False)
        self._selector.register(self._signals, selectors.EVENT_READ)

    def run(self) -> None:
        """Serves until the socket closes."""
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._send(ZygoteEvent("ready"))
        while True:
            events = self._selector.select(IDLE_SECONDS if self._prepared.has_work else None)
            if not events and self._prepared.has_work:
                self._prepared.work()
            readable = [key.fileobj for key, _ in events]
            if self._signals in readable:
                self._reap()
            if self._control in readable and not self._receive():
                return

    def _receive(self) -> bool:
        """Handles one message; False when the other side has closed."""
        try:
            message, descriptors, flags, _ = socket.recv_fds(
                self._control, MESSAGE_BYTES_MAXIMUM, DESCRIPTORS_MAXIMUM
            )
        except ConnectionError:
            return False
        if not message:
            return False
        instance_id = ""
        try:
            start = decode_start(message)
            instance_id = start.instance_id
            expected = len(start.descriptor_names)
            if len(descriptors) != expected or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise BadRequest(
                    f"Expected {expected} descriptors with the start, found {len(descriptors)}.",
                    "Run the same release of Stoker in agent and zygote.",
                )
            self._fork(start, descriptors)
        except OSError as error:
            failed = StartFailed(
                f"Expected to fork a worker, found: {error.strerror}.",
                "Free memory or processes on the node.",
            )
            self._send(ZygoteEvent("refused", instance_id, error=failed.to_wire()))
        except StokerError as error:
            self._send(ZygoteEvent("refused", instance_id, error=error.to_wire()))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _fork(self, start: WorkerStart, descriptors: Sequence[int]) -> None:
        prepared = self._prepared.take(start)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                self._leave()
                code = worker.run(start, descriptors, prepared) if os.getppid() == parent else 0
            finally:
                os._exit(code)
        self._instances[pid] = start.instance_id
        self._send(ZygoteEvent("forked", start.instance_id, pid))

    def _leave(self) -> None:
        """In the child: closes what belongs to the zygote."""
        signal.set_wakeup_fd(-1)
        self._selector.close()
        for end in (self._control, self._signals, self._wakeup):
            end.close()

    def _reap(self) -> None:
        self._signals.recv(4096)
        for pid, instance_id in list(self._instances.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                del self._instances[pid]
                code = os.waitstatus_to_exitcode(status)
                self._send(ZygoteEvent("exited", instance_id, pid, code))

    def _send(self, event: ZygoteEvent) -> None:
        try:
            self._control.send(encode_event(event))
        except (BrokenPipeError, ConnectionError):
            # The agent is gone; the next receive says so.
            return


def main() -> None:
    began = time.monotonic()
    worker.die_with_parent()
    control = socket.socket(fileno=int(sys.argv[1]))
    preload()
    freeze()
    _log.info("zygote_ready", seconds=round(time.monotonic() - began, 2))
    Zygote(control).run()


if __name__ == "__main__":
    main()
