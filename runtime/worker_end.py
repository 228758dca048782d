"""What ended a worker, in words."""

from __future__ import annotations

import signal

from stoker.placement.errors import InstanceLost, StartFailed
from stoker.runtime.node import Worker


def cause_of_death(
    function: str, worker: Worker, error: type[InstanceLost | StartFailed], memory_story: str | None
) -> InstanceLost | StartFailed:
    """The error for a worker that has exited; `memory_story` says how it met its memory limit."""
    code = worker.exited.result()
    if code == -signal.SIGKILL and memory_story is not None:
        return error(memory_story, "Raise limits.memory, or let the function take less at once.")
    how = f"died of signal {-code}" if code < 0 else f"ended with exit code {code}"
    return error(
        f"Expected worker pid {worker.pid} of {function} to live, found that it {how}.",
        "Read the function's log and try again.",
    )
