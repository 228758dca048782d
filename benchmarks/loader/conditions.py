"""What a load finds when it begins: caches, memory, and the disk's own speed."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil

HUGE_PAGE_BYTES = 2 << 20
HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
SHARED_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
FIO_JOBS = {
    "fio_psync": ("--ioengine=psync", "--iodepth=1"),
    "fio_io_uring": ("--ioengine=io_uring", "--iodepth=8"),
    "fio_io_uring_32": ("--ioengine=io_uring", "--iodepth=32"),
}
FIO_HUGE_PAGES = 80


def drop(files: Iterable[Path]) -> None:
    """Take the files out of the page cache.

    Not everything else with them: a loader's own code would then be read from the disk too,
    which the process that waits for its file has behind it.
    """
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def fill_cache(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        piece = bytearray(1 << 24)
        while file.readinto(piece):
            pass


def prime(byte_count: int) -> None:
    """Have the machine back `byte_count` of free memory, by a process that touches it and exits.

    On a virtual machine, memory that was freed goes back to the host after seconds, and the
    first touch afterwards costs more than reading a disk does.
    """
    if byte_count <= 0:
        return
    limited = min(byte_count, int(psutil.virtual_memory().available * 0.6))
    subprocess.run([sys.executable, __file__, str(limited)], check=True)


def _touch(byte_count: int) -> None:
    memory = mmap.mmap(-1, byte_count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    for offset in range(0, byte_count, 4096):
        memory[offset] = 1


@contextlib.contextmanager
def shared_huge_pages(setting: str) -> Iterator[bool]:
    """Set whether shared memory may have huge pages; False where that is not allowed."""
    try:
        chosen = SHARED_HUGE_PAGES.read_text()
        before = chosen[chosen.index("[") + 1 : chosen.index("]")]
        SHARED_HUGE_PAGES.write_text(setting)
    except (OSError, ValueError):
        yield False
        return
    try:
        yield True
    finally:
        SHARED_HUGE_PAGES.write_text(before)


@contextlib.contextmanager
def huge_pages_for_fio() -> Iterator[bool]:
    """Reserve the pages of fio's buffers; False where that is not allowed."""
    try:
        before = HUGE_PAGES.read_text()
        HUGE_PAGES.write_text(f"{int(before) + FIO_HUGE_PAGES}\n")
    except OSError:
        yield False
        return
    try:
        yield int(HUGE_PAGES.read_text()) >= int(before) + FIO_HUGE_PAGES
    finally:
        HUGE_PAGES.write_text(before)


def fio(job: str, path: Path) -> dict[str, Any]:
    """Seconds in which fio reads the whole file in order, past the page cache."""
    drop([path])
    with huge_pages_for_fio() as huge:
        ran = subprocess.run(
            [
                "fio",
                "--name=read",
                f"--filename={path}",
                "--readonly",
                "--rw=read",
                "--bs=4M",
                "--direct=1",
                *FIO_JOBS[job],
                *(["--mem=shmhuge"] if huge else []),
                "--output-format=json",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    if ran.returncode != 0:
        raise OSError(f"fio ended with {ran.returncode}: {ran.stderr.strip()[-300:]}")
    read = json.loads(ran.stdout[ran.stdout.index("{") :])["jobs"][0]["read"]
    if read["io_bytes"] < path.stat().st_size // (4 << 20) * (4 << 20):
        raise OSError(f"fio read {read['io_bytes']} bytes only")
    seconds = read["runtime"] / 1000 * path.stat().st_size / read["io_bytes"]
    return {"seconds": seconds, "huge_pages": huge}


def settle(
    condition: str, files: list[Path], read: Path, prime_bytes: int, idle_seconds: float
) -> None:
    """Bring the machine into `condition`, so that a load of `read` may begin at once."""
    if condition in ("cold", "idle", "ablation"):
        drop(files)
    elif condition == "warm":
        fill_cache(read)
    prime(prime_bytes)
    if condition == "idle":
        time.sleep(idle_seconds)


if __name__ == "__main__":
    _touch(int(sys.argv[1]))
