"""A worker ahead of its start: made ready in its sandbox and its control groups, then waiting.

Whatever user code does at import it does here, in a process that becomes one instance and no
other. What only a start can tell (the instance's id and token, the port) is not here yet; a module
that asks for its port while it is imported is told that there is none, and is not parked.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from stoker.placement.errors import BadRequest, StartFailed, StokerError
from stoker.runtime import worker
from stoker.runtime.template import ModelTemplate
from stoker.runtime.worker_function import Prepared, prepare
from stoker.runtime.worker_start import (
    DESCRIPTORS_MAXIMUM,
    MESSAGE_BYTES_MAXIMUM,
    WorkerStart,
    WorkerStatus,
    decode_start,
)

# Not the main thread, as in a worker that was not parked; it stays, as there.
_importer = ThreadPoolExecutor(1, "import")


class _Watched(dict[bytes, bytes]):
    """The variables of the environment; notes when the port is asked for, which is not there."""

    port_wanted = False

    def __missing__(self, name: bytes) -> bytes:
        if os.fsdecode(name) in worker.PORT_VARIABLES:
            self.port_wanted = True
        raise KeyError(name)


def run(start: WorkerStart, descriptors: Sequence[int], template: ModelTemplate | None) -> int:
    """Makes `start` ready, says so, waits for the start itself and serves it; the exit code.

    Called in the child, right after the fork. `descriptors` are those of a ParkStart.
    """
    control, log = descriptors
    try:
        joining = worker.become(start, log, {})  # with secrets, nothing is parked
        joining.wait()
        prepared = _prepare(start, template)
        worker.tell(control, WorkerStatus("parked", private_bytes=_private_bytes()))
        whole, given = _wait(control)
    except StokerError as error:
        worker.tell(control, WorkerStatus("failed", error=error.to_wire()))
        return 1
    except Exception:  # noqa: BLE001 (the process ends here)
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    if whole is None:
        return 0
    started_at = time.monotonic()
    listen, log, *others = given
    worker.write_output_to(log)
    return worker.serve(whole, (listen, *others), prepared, joining, started_at)


def _prepare(start: WorkerStart, template: ModelTemplate | None) -> Prepared:
    torch.set_num_threads(start.threads)
    if template is not None:
        return prepare(start, template)
    variables = _Watched(os.environb)
    view: Any
    for view in (os.environ, os.environb):
        view._data = variables  # noqa: SLF001 (what both of them look into)
    prepared = _importer.submit(prepare, start, None).result()
    if variables.port_wanted:
        raise StartFailed(
            "Expected code that can be imported before its instance has a port, found that it "
            f"asks for {' or '.join(worker.PORT_VARIABLES)}.",
            "Read the port when the function is called or started.",
        )
    return prepared


def _wait(control: int) -> tuple[WorkerStart | None, list[int]]:
    """The start with its descriptors; None when there will be none."""
    with socket.socket(fileno=control) as waiting:
        message, descriptors, _, _ = socket.recv_fds(
            waiting, MESSAGE_BYTES_MAXIMUM, DESCRIPTORS_MAXIMUM
        )
        if not message:
            return None, []
        start = decode_start(message)
        if not isinstance(start, WorkerStart) or len(descriptors) != len(start.descriptor_names):
            raise BadRequest("Expected a start with its descriptors, found something else.")
        waiting.send(b"1")  # that it is taken
    return start, descriptors


def _private_bytes() -> int:
    """Of pages that this process shares with nobody, its zygote included."""
    lines = [line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()]
    return sum(int(line[1]) << 10 for line in lines if line[0].startswith("Private_"))
