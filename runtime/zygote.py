"""The zygote: a process with everything imported, which forks a worker for every message.

`python -m stoker.runtime.zygote FD` serves the SOCK_SEQPACKET socket FD (see worker_start.py)
until it closes. It has one thread, opens no other socket and never touches a device, so that a
fork of it is sound. Of a model function for which it parks a worker it keeps the template, so that
every further instance is a fork and a mapping. Another zygote, for functions in an environment, is
a fork of it too: it shares the memory of all that is imported.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from stoker.placement.errors import BadRequest, StartFailed, StokerError
from stoker.runtime import worker, worker_parked
from stoker.runtime.engine.preload import preload
from stoker.runtime.environment_entry import enter
from stoker.runtime.templates import Templates, freeze
from stoker.runtime.worker_start import (
    DESCRIPTORS_MAXIMUM,
    MESSAGE_BYTES_MAXIMUM,
    ParkStart,
    Start,
    ZygoteEvent,
    ZygoteStart,
    decode_start,
    encode_event,
)

_log = structlog.get_logger()


class Zygote:
    """The fork server's loop over its socket and its children's ends."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._templates = Templates()
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
        # A namespace has no code of its own: .pth files make some that nobody uses.
        files = ((name, getattr(each, "__file__", None)) for name, each in [*sys.modules.items()])
        modules = {name.partition(".")[0] for name, file in files if file}
        self._send(ZygoteEvent("ready", modules=tuple(sorted(modules))))
        while True:
            readable = [key.fileobj for key, _ in self._selector.select()]
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
            pid = self._fork(self._role(start, descriptors))
            self._instances[pid] = instance_id
            self._send(ZygoteEvent("forked", instance_id, pid))
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

    def _role(self, start: Start, descriptors: Sequence[int]) -> Callable[[], int]:
        """What a child is to be for `start`."""
        if isinstance(start, ZygoteStart):
            folder = Path(start.environment_dir)
            return lambda: _serve_in(folder, descriptors[0])
        if isinstance(start, ParkStart):
            template = self._templates.make(start.start)
            return lambda: worker_parked.run(start.start, descriptors, template)
        template = self._templates.find(start)
        return lambda: worker.run(start, descriptors, template)

    def _fork(self, become: Callable[[], int]) -> int:
        """The child's process id; the child is what `become` does, and its exit code."""
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                self._leave()
                code = become() if os.getppid() == parent else 0
            finally:
                os._exit(code)
        return pid

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


def _serve_in(environment_dir: Path, control: int) -> int:
    """In the child: a zygote of its own, for what is to run in the environment."""
    try:
        worker.die_with_parent()
        enter(environment_dir)
        Zygote(socket.socket(fileno=control)).run()
    except Exception:  # noqa: BLE001 (the process ends here)
        traceback.print_exc()
        return 1
    return 0


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
