"""The memory of a process of ours, as the kernel counts it."""

from __future__ import annotations

from pathlib import Path

import psutil


def worker_of(pid: int) -> int:
    """The process that serves: gunicorn's only worker."""
    (worker,) = psutil.Process(pid).children()
    found: int = worker.pid
    return found


def resident_bytes(pid: int) -> int:
    return _of(pid, "VmRSS")


def forget_peak(pid: int) -> None:
    """Begin anew with what `peak_bytes` tells."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_bytes(pid: int) -> int:
    return _of(pid, "VmHWM")


def _of(pid: int, field: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
