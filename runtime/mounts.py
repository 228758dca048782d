"""A view of the file system of one's own: read-only but for one folder, with other users' places,
and the node's own, out of sight.

    /                read-only
    /tmp, /var/tmp   <work>/tmp
    /dev/shm         empty, in memory
    /var             with secrets: nothing but tmp and openfaas/secrets, which is in memory
    hidden folders   empty, but for the folders of `kept` that lie in them
    <work>           writable

It is seen by this process and its children, and goes with the last of them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from stoker.runtime import linux


def existing(paths: Iterable[str]) -> tuple[str, ...]:
    """Those of `paths` that we may read, once each, with symbolic links followed."""
    there = (path for path in paths if os.access(path, os.R_OK))
    return tuple(dict.fromkeys(map(os.path.realpath, there)))


TEMPORARY = existing(("/tmp", "/var/tmp"))  # noqa: S108 (the places themselves)
SHARED_MEMORY = existing(("/dev/shm",))  # noqa: S108
SECRETS = "/var/openfaas/secrets"
_VAR = existing(("/var",))


def make_own_view(
    work: str, hidden: Iterable[str], kept: Iterable[str], secrets: Mapping[str, bytes]
) -> None:
    """Takes effect at once; the working directory must be set anew. OSError if not allowed.

    Needs CAP_SYS_ADMIN, or a kernel that gives every user namespaces; then uid and gid stay the
    same. `work` has a folder `tmp`. All are absolute paths of what exists, without symbolic links.
    """
    covered = outermost([*TEMPORARY, *SHARED_MEMORY, *hidden, *(_VAR if secrets else ())])
    back = [path for path in outermost([work, *kept]) if _inside(path, covered)]
    _enter_namespace()
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.set_read_only("/", True, everything_below=True)
    # What will be covered is still reached through these.
    sources = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in {*back, work}}
    try:
        own_temporary = os.open(Path(work, "tmp"), os.O_PATH | os.O_CLOEXEC)
        sources[""] = own_temporary
        for place in covered:
            if place not in TEMPORARY:
                linux.mount("none", place, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=1777")
        for place in TEMPORARY:
            if place not in covered:  # but in /var
                _make_place(place, own_temporary)
            _bind(own_temporary, place)
            linux.set_read_only(place, False)
        _write_files(SECRETS, secrets)
        for path in back:
            _make_place(path, sources[path])
            _bind(sources[path], path)
        _bind(sources[work], work)
        linux.set_read_only(work, False)
        for place in covered:
            if place not in (*TEMPORARY, *SHARED_MEMORY):
                linux.set_read_only(place, True)
    finally:
        for descriptor in sources.values():
            os.close(descriptor)


def outermost(paths: Iterable[str]) -> list[str]:
    """`paths` without those that lie in another one of them."""
    chosen: list[str] = []
    for path in sorted(set(paths)):
        if not _inside(path, chosen):
            chosen.append(path)
    return chosen


def _inside(path: str, folders: Sequence[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def _enter_namespace() -> None:
    try:
        linux.unshare(linux.CLONE_NEWNS)
        return
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
    uid, gid = os.getuid(), os.getgid()
    linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def _make_place(path: str, source: int) -> None:
    """Something to mount `source` on, in a folder that was just covered."""
    is_folder = stat.S_ISDIR(os.fstat(source).st_mode)
    folder = path if is_folder else path.rpartition("/")[0]
    os.makedirs(folder, exist_ok=True)  # noqa: PTH103 (each start waits for it)
    if not is_folder:
        Path(path).touch()


def _bind(source: int, target: str) -> None:
    linux.mount(f"/proc/self/fd/{source}", target, None, linux.MS_BIND | linux.MS_REC)


def _write_files(folder: str, files: Mapping[str, bytes]) -> None:
    if files:
        os.makedirs(folder)  # noqa: PTH103 (each start waits for it)
    for name, content in files.items():
        descriptor = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
        with open(descriptor, "wb") as file:
            file.write(content)
