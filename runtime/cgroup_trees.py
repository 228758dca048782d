"""Which trees of control groups this process may make groups in.

In version 2 a group with processes cannot hand controllers to groups below it, so the agent first
moves itself and its family from the group that it was started in to `stoker-main` below that:

    <the group that Stoker was given>
        stoker-main                      supervisor, gateway, placement, agent, zygote
        stoker-<agent's pid>-<instance>  one worker and its children
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import psutil

from stoker.runtime.cgroups import CONTROLLERS, ControlGroups, Hierarchy, read

_LEAF = "stoker-main"
_CLAIM_TRIES = 5


def find(
    mounts: Path = Path("/proc/self/mountinfo"),
    membership: Path = Path("/proc/self/cgroup"),
    *,
    claim: bool = True,
) -> ControlGroups:
    """The control groups that this process may make groups in.

    With version 2, `claim` may move this process and its family into a group of their own.
    Without it nothing is changed, and the answer is what a claim would most likely find.
    """
    own = dict(_memberships(membership.read_text()))
    missing: dict[str, str] = dict.fromkeys(CONTROLLERS, "no control group has this controller")
    hierarchies: list[Hierarchy] = []
    for tree in _own_trees(mounts.read_text(), own):
        wanted = tuple(name for name in tree.controllers if name in missing)
        if not wanted:
            continue
        try:
            usable = _usable(replace(tree, controllers=wanted), claim)
        except OSError as error:
            missing |= dict.fromkeys(wanted, f"{error.filename}: {error.strerror}")
            continue
        hierarchies.append(usable)
        missing = {name: why for name, why in missing.items() if name not in wanted}
    return ControlGroups(hierarchies, missing)


def _memberships(text: str) -> Iterator[tuple[str, str]]:
    """Controller (of version 2: "") and our group in its tree, of /proc/self/cgroup."""
    for line in text.splitlines():
        _, controllers, group = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, group


def _own_trees(text: str, own: Mapping[str, str]) -> Iterator[Hierarchy]:
    """Our own group in each mounted tree, with the controllers that it has."""
    for line in text.splitlines():
        fields, _, rest = line.partition(" - ")
        root, mount_point = fields.split()[3:5]
        kind, _, options = rest.split(" ", 2)
        named = tuple(name for name in CONTROLLERS if name in options.split(","))
        group = own.get(named[0] if named else "")
        # A container may see no more of the tree than its own part of it.
        root = root.rstrip("/")
        if group is None or not f"{group}/".startswith(f"{root}/"):
            continue
        folder = Path(mount_point + group[len(root) :])
        if kind == "cgroup" and named:
            yield Hierarchy(1, folder, named)
        elif kind == "cgroup2":
            base = folder.parent if folder.name == _LEAF else folder
            there = read(base / "cgroup.controllers").split()
            yield Hierarchy(2, base, tuple(name for name in CONTROLLERS if name in there))


def _usable(tree: Hierarchy, claim: bool) -> Hierarchy:
    """`tree` if groups can be made in it; OSError with path and reason otherwise."""
    if not os.access(tree.folder, os.W_OK):
        raise OSError(errno.EACCES, "it cannot be written", str(tree.folder))
    if tree.version == 1:
        return tree
    control = tree.folder / "cgroup.subtree_control"
    for _ in range(_CLAIM_TRIES):  # a process may be forked meanwhile
        if set(tree.controllers) <= set(control.read_text().split()):
            return tree
        if not claim:
            _processes_of(tree.folder, {os.getpid()})
            return tree
        try:
            control.write_text(" ".join(f"+{name}" for name in tree.controllers))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            _move_family(tree.folder)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(control))


def _move_family(base: Path) -> None:
    """Our parent, and all that it forked, into a group below `base`; nobody else."""
    eldest = psutil.Process().parent() or psutil.Process()
    family = {eldest.pid, *(process.pid for process in eldest.children(recursive=True))}
    pids = _processes_of(base, family)
    leaf = base / _LEAF
    leaf.mkdir(exist_ok=True)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            (leaf / "cgroup.procs").write_text(str(pid))


def _processes_of(base: Path, family: set[int]) -> list[int]:
    """The processes of the group, which must be of `family`."""
    pids = [int(text) for text in (base / "cgroup.procs").read_text().split()]
    for pid in pids:
        if pid not in family:
            told = f"it holds processes that are not Stoker's own, such as {pid}"
            raise OSError(errno.EBUSY, told, str(base))
    return pids
