"""Checks of what holds functions on this machine: the sandbox and the control groups."""

from __future__ import annotations

from collections.abc import Mapping

from stoker.placement.errors import StokerError
from stoker.runtime import cgroup_trees, sandbox
from stoker.runtime.cgroups import CONTROLLERS
from stoker.runtime.doctor_check import Check, refused

SANDBOX = "sandbox"
LIMITS = "limits of functions"
_REMEDIES = {
    "mounts": "Give Stoker CAP_SYS_ADMIN, or let its user make user namespaces "
    "(Linux 5.12 or later).",
    "landlock": "Use Linux 5.13 or later with `landlock` in the boot parameter lsm=, "
    "and allow its system calls in the container's seccomp profile.",
    "seccomp": "Use a kernel with CONFIG_SECCOMP_FILTER, on x86-64 or 64-bit ARM.",
}


def check_sandbox(found: Mapping[str, str] | None = None) -> Check:
    """Every level is entered by a process that ends then."""
    try:
        levels = sandbox.probe() if found is None else found
    except StokerError as error:
        return refused(SANDBOX, error)
    missing = {level: why for level, why in levels.items() if why}
    there = ", ".join(sandbox.in_force(levels)) or "nothing"
    if not missing:
        return Check(SANDBOX, "ok", f"Functions are held by {there}.")
    told = "; ".join(f"{level} ({why})" for level, why in missing.items())
    remedies = [_REMEDIES[level] for level in missing if level in _REMEDIES]
    return Check(
        SANDBOX,
        "warn",
        f"Functions are held by {there}, but not by {told}.",
        " ".join(remedies) or "Run Stoker on a machine whose kernel allows it.",
    )


def check_limits(missing: Mapping[str, str] | None = None) -> Check:
    """Whether memory, processes and cores of a function can be limited."""
    why = cgroup_trees.find(claim=False).missing if missing is None else missing
    held = [name for name in CONTROLLERS if name not in why]
    if not why:
        return Check(LIMITS, "ok", "Control groups hold functions to memory, pids and cpu.")
    told = "; ".join(f"{name} ({reason})" for name, reason in why.items())
    return Check(
        LIMITS,
        "warn",
        f"Control groups hold functions to {', '.join(held) or 'nothing'}, but not to {told}.",
        "Run Stoker in a control group of its own that it may write, e.g. by Delegate=yes in its "
        "systemd unit.",
    )
