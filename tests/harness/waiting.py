"""Waiting for what another thread or process brings about."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil


def eventually(holds: Callable[[], object], seconds: float = 15.0) -> None:
    """Return as soon as `holds()` is true; fail if it is not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not so within {seconds:g} s"
        time.sleep(0.005)


def gone(pid: int) -> bool:
    """Whether the process has ended, reaped or not."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
