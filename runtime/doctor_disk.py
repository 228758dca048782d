"""Checks of the state directory and of the disk below it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from stoker.runtime.doctor_check import Check, size_in_words

STATE_DIRECTORY = "state directory"
DIRECT_READS = "direct reads"
DISK_SPACE = "disk space"
FREE_BYTES_MINIMUM = 256 << 20
FREE_BYTES_WANTED = 4 << 30
LOADER_ALIGNMENT_BYTES = 4096
_PROBE_BYTES = 1 << 16
_MOUNTS = Path("/proc/self/mountinfo")
_SHORT_LIVED = {
    "tmpfs": "lives in memory and is empty after a restart",
    "ramfs": "lives in memory and is empty after a restart",
    "overlay": "belongs to a container and goes with it",
}
# The store's write-ahead log needs memory that is shared through the file.
_REMOTE = frozenset(("nfs", "nfs4", "cifs", "smb3", "ceph", "fuse.sshfs", "fuse.s3fs", "lustre"))

_AT_FDCWD = -100
_STATX_DIOALIGN = 0x2000
_STATX_BYTES = 256
_STATX_DIO_OFFSET_ALIGN_AT = 156


def check_state_directory(state: Path, mounts: Path = _MOUNTS) -> Check:
    """Whether the directory can be used and is its owner's alone."""
    folder = _nearest(state)
    where = "" if folder == state else " (still to be made)"
    if not folder.is_dir():
        return _unusable(state, f"{folder} is not a directory")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return _unusable(state, f"a file cannot be made in {folder}: {error.strerror}")
    kind = filesystem_type(folder, mounts)
    open_to_others = _open_to_others(state)
    if open_to_others is not None:
        return Check(
            STATE_DIRECTORY,
            "warn",
            f"Other users can reach {open_to_others}.",
            f"Run `chmod go-rwx {open_to_others}`; `stoker up` closes its folders by itself.",
        )
    if kind in _SHORT_LIVED:
        return Check(
            STATE_DIRECTORY,
            "warn",
            f"{state}{where} lies on {kind}, which {_SHORT_LIVED[kind]}.",
            "Name a directory on a disk or a volume with --state or STOKER_STATE.",
        )
    if kind in _REMOTE:
        return Check(
            STATE_DIRECTORY,
            "warn",
            f"{state}{where} lies on {kind}, where the SQLite store is not safe.",
            "Name a directory on a local disk with --state or STOKER_STATE.",
        )
    return Check(STATE_DIRECTORY, "ok", f"{state}{where} is writable and lies on {kind}.")


def check_disk_space(
    state: Path,
    wanted_bytes: int = FREE_BYTES_WANTED,
    free_bytes: Callable[[Path], int] | None = None,
) -> Check:
    """Whether the SSD tier has room; `wanted_bytes` is what would let it keep its models."""
    folder = _nearest(state)
    try:
        free = free_bytes(folder) if free_bytes else shutil.disk_usage(folder).free
    except OSError as error:
        found = f"The free space at {folder} cannot be read: {error.strerror}."
        return Check(DISK_SPACE, "fail", found, "See whether the disk is healthy.")
    found = f"{size_in_words(free)} are free at {folder}."
    if free < FREE_BYTES_MINIMUM:
        remedy = f"Free at least {size_in_words(FREE_BYTES_MINIMUM)}, or choose another --state."
        return Check(DISK_SPACE, "fail", found, remedy)
    if free < wanted_bytes:
        remedy = (
            f"Free {size_in_words(wanted_bytes)}, so that models stay on the disk and are not "
            "fetched again."
        )
        return Check(DISK_SPACE, "warn", found, remedy)
    return Check(DISK_SPACE, "ok", found)


def check_direct_reads(
    state: Path, mounts: Path = _MOUNTS, read: Callable[[Path], str] | None = None
) -> Check:
    """Whether the loader can read past the page cache; `read` tries it and says what failed."""
    folder = _nearest(state)
    kind = filesystem_type(folder, mounts)
    refusal = (read or read_directly)(folder)
    if kind in ("tmpfs", "ramfs"):
        refusal = refusal or "it lies in memory already"
    if not refusal:
        return Check(DIRECT_READS, "ok", f"O_DIRECT reads work on the {kind} at {folder}.")
    return Check(
        DIRECT_READS,
        "warn",
        f"No O_DIRECT reads on the {kind} at {folder} ({refusal}), so buffered reads are used.",
        "Put --state on ext4 or XFS on a local disk; loads from the SSD tier are faster there.",
    )


def read_directly(folder: Path) -> str:
    """Write a small file into `folder` and read it with O_DIRECT; what was refused, else ""."""
    try:
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=".stoker-doctor-")
    except OSError as error:
        return f"no file can be made: {error.strerror}"
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
        alignment = direct_alignment_bytes(Path(name)) or LOADER_ALIGNMENT_BYTES
        if alignment > LOADER_ALIGNMENT_BYTES:
            return f"they must be aligned to {alignment} bytes"
        return _read_aligned(name, alignment)
    except OSError as error:
        return str(error.strerror)
    finally:
        with contextlib.suppress(OSError):
            Path(name).unlink()


def direct_alignment_bytes(path: Path) -> int | None:
    """What offsets of direct reads must be a multiple of; None where the kernel does not tell."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "statx"):
        return None
    found = ctypes.create_string_buffer(_STATX_BYTES)
    if library.statx(_AT_FDCWD, os.fsencode(path), 0, _STATX_DIOALIGN, found) != 0:
        return None
    mask = int.from_bytes(found.raw[:4], "little")
    at = _STATX_DIO_OFFSET_ALIGN_AT
    alignment = int.from_bytes(found.raw[at : at + 4], "little")
    return alignment if mask & _STATX_DIOALIGN and alignment else None


def filesystem_type(path: Path, mounts: Path = _MOUNTS) -> str:
    """The type of the file system that `path` lies on, `unknown` where /proc does not tell."""
    found, depth = "unknown", -1
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:
            continue
        point = Path(fields[4].replace("\\040", " "))
        # Of two on one mount point, the later one hides the earlier.
        if path.resolve().is_relative_to(point) and len(point.parts) >= depth:
            found, depth = after.split()[0], len(point.parts)
    return found


def _read_aligned(name: str, alignment: int) -> str:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        return "refused" if error.errno == errno.EINVAL else str(error.strerror)
    try:
        with mmap.mmap(-1, _PROBE_BYTES) as buffer:
            got = os.preadv(descriptor, [buffer], alignment)
    finally:
        os.close(descriptor)
    expected = _PROBE_BYTES - alignment
    return "" if got == expected else f"{got} bytes came instead of {expected}"


def _nearest(state: Path) -> Path:
    """The directory itself, or what of its path exists."""
    return next(path for path in (state, *state.parents) if path.exists())


def _open_to_others(state: Path) -> Path | None:
    for path in (state, state / "auth", state / "auth" / "password", state / "auth/cluster-token"):
        with contextlib.suppress(OSError):
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                return path
    return None


def _unusable(state: Path, reason: str) -> Check:
    return Check(
        STATE_DIRECTORY,
        "fail",
        f"The state directory {state} cannot be used: {reason}.",
        "Give this user the right to write it, or name another with --state or STOKER_STATE.",
    )
