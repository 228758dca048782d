"""Checks of what the kernel allows: huge pages, shared memory, io_uring, limits."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

from stoker.runtime.doctor_check import Check, size_in_words

SHARED_HUGE_PAGES = "huge pages, shared memory"
ANONYMOUS_HUGE_PAGES = "huge pages, anonymous memory"
SHARED_MEMORY = "shared memory"
IO_URING = "io_uring"
OPEN_FILES = "open files"
LOCKED_MEMORY = "locked memory"
OPEN_FILES_WANTED = 4096
HUGE_PAGE_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
_IO_URING_SETUP = 425  # one number on every architecture
_IO_URING_PARAMS_BYTES = 120


def check_shared_huge_pages(settings: Path = HUGE_PAGE_SETTINGS) -> Check:
    """The pool of checkpoints lies in shared memory."""
    return _huge_pages(
        SHARED_HUGE_PAGES,
        settings / "shmem_enabled",
        ("always", "within_size", "advise", "force"),
        "advise",
        "the pool of checkpoints works, but reads into it are up to twice as slow",
    )


def check_anonymous_huge_pages(settings: Path = HUGE_PAGE_SETTINGS) -> Check:
    """`stoker.load_file` reads into anonymous memory."""
    return _huge_pages(
        ANONYMOUS_HUGE_PAGES,
        settings / "enabled",
        ("always", "madvise"),
        "madvise",
        "`stoker.load_file` works, but is slower",
    )


def _huge_pages(
    name: str, path: Path, good: tuple[str, ...], advice: str, consequence: str
) -> Check:
    try:
        text = path.read_text()
    except OSError:
        return Check(
            name,
            "warn",
            f"This kernel has no {path}: {consequence}.",
            "Use a kernel with transparent huge pages (CONFIG_TRANSPARENT_HUGEPAGE).",
        )
    chosen = text.partition("[")[2].partition("]")[0]
    if chosen in good:
        return Check(name, "ok", f"{path} says {chosen}.")
    return Check(
        name,
        "warn",
        f"{path} says {chosen or text.strip()!r}: {consequence}.",
        f"As root, once per boot: `echo {advice} > {path}`",
    )


def check_shared_memory(make: Callable[[str], int] = os.memfd_create) -> Check:
    """The pool is a memory file, which needs no mount and no size of /dev/shm."""
    try:
        os.close(make("stoker-doctor"))
    except OSError as error:
        return Check(
            SHARED_MEMORY,
            "fail",
            f"The kernel makes no memory files: {error.strerror}.",
            "Allow the system call memfd_create in the sandbox that Stoker runs in.",
        )
    return Check(SHARED_MEMORY, "ok", "Memory files work; /dev/shm is not used, whatever its size.")


def check_io_uring(set_up: Callable[[], int] | None = None) -> Check:
    """For information: where there is none, reads go through pread, which every kernel has."""
    code = (set_up or _io_uring_error)()
    if code == 0:
        return Check(IO_URING, "ok", "io_uring is available; the SSD is read into the pool by it.")
    reason = {errno.ENOSYS: "not in this kernel", errno.EPERM: "not allowed here"}
    said = reason.get(code, os.strerror(code))
    return Check(IO_URING, "ok", f"io_uring is {said}; the SSD is read with pread instead.")


def _io_uring_error() -> int:
    """The error number of making a ring of one entry, 0 if that works."""
    library = ctypes.CDLL(None, use_errno=True)
    parameters = ctypes.create_string_buffer(_IO_URING_PARAMS_BYTES)
    descriptor = library.syscall(_IO_URING_SETUP, 1, parameters)
    if descriptor < 0:
        return ctypes.get_errno()
    os.close(descriptor)
    return 0


def check_open_files(soft_limit: int | None = None) -> Check:
    """Each request takes two descriptors of the gateway, and each instance some of its node."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if soft_limit is None else soft_limit
    if limit == resource.RLIM_INFINITY:
        return Check(OPEN_FILES, "ok", "A process may open any number of files.")
    found = f"A process may open {limit} files."
    if limit >= OPEN_FILES_WANTED:
        return Check(OPEN_FILES, "ok", found)
    return Check(
        OPEN_FILES,
        "warn",
        found,
        "Run `ulimit -n 65536` before `stoker up`, or set LimitNOFILE=65536 in its unit.",
    )


def check_locked_memory(soft_limit_bytes: int | None = None) -> Check:
    """For information: memory that io_uring reads into is pinned where that is allowed."""
    limit = soft_limit_bytes
    if limit is None:
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    said = "any amount" if limit == resource.RLIM_INFINITY else size_in_words(limit)
    return Check(
        LOCKED_MEMORY,
        "ok",
        f"A process may lock {said} of memory; a pool within that is pinned for io_uring.",
    )
