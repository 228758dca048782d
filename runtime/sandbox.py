"""What a worker gives up between its fork and its first line of user code, level by level.

    no-new-privileges  no program that it runs gets more rights than it has
    rlimits            no core files; with limits.memory, so much private memory and no more
    mounts             its own /tmp and /dev/shm, all else read-only or out of sight (mounts.py)
    capabilities       none, whoever the node runs as
    landlock           the files that are named here, and no process but its own (landlock.py)
    seccomp            no system call that serves attacks rather than functions (seccomp.py)

Everything is done in the forked process itself, so that what its zygote imported stays. A node
finds out once, with `probe`, what its kernel allows, and says so in its record; of that a worker
then takes every level, or does not start. `python -m stoker.runtime.sandbox DIR` prints the probe.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import orjson

import stoker
from stoker.placement.errors import StartFailed
from stoker.runtime import landlock, linux, mounts, seccomp

PROBE_SECONDS_MAXIMUM = 20.0
THREAD_STACKS_BYTES = 512 << 20
"""Room above limits.memory for what is reserved and hardly touched: 64 threads of 8 MiB each."""

_SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/nix", "/gnu"),
    *("/proc", "/sys", "/run/systemd/resolve", "/run/resolvconf"),
)
# Not all of it: what only its owner may read, a worker of that owner could read without rights.
_ETC = (
    *("passwd", "group", "hosts", "host.conf", "hostname", "resolv.conf", "nsswitch.conf"),
    *("gai.conf", "protocols", "services", "localtime", "timezone", "mime.types", "os-release"),
    *("ssl", "pki", "ca-certificates", "alternatives", "fonts", "OpenCL"),
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ld.so.preload"),
)
_DEVICE_NAMES = ("null", "zero", "full", "random", "urandom", "tty", "nvidia*", "dri", "kfd")


@dataclass(frozen=True, slots=True)
class Plan:
    """What one process may keep. `readable` are files and folders beside those of the system.

    Everything below `work_dir` may be written; `work_dir/tmp` exists. `hidden` are folders of
    the node. `private_bytes` is how much private memory may be mapped from now on, None for any.
    `own_view` says that the level `mounts` has been entered. `secrets` are files to lay out there.
    """

    work_dir: Path
    readable: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    private_bytes: int | None = None
    own_view: bool = False
    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)


def _interpreter_folders() -> tuple[str, ...]:
    """Where this interpreter, and so any fork of it, finds what it has not imported yet."""
    paths = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix, *sys.path}
    paths |= set(os.environ.get("LD_LIBRARY_PATH", "").split(":"))
    # In a checkout the packages are links to folders elsewhere.
    paths |= {*stoker.__path__, *(e.path for root in stoker.__path__ for e in os.scandir(root))}
    return tuple(path for path in mounts.existing(paths) if Path(path).is_dir())


# Looked for once, in the zygote, rather than in each worker.
_INTERPRETER = mounts.outermost(_interpreter_folders())
_READABLE = mounts.outermost(
    mounts.existing((*_SYSTEM, *(f"/etc/{name}" for name in _ETC), *_INTERPRETER))
)
_DEVICES = mounts.existing(str(p) for name in _DEVICE_NAMES for p in Path("/dev").glob(name))
_RULES = (
    *((path, landlock.READ) for path in _READABLE),
    *((path, landlock.DEVICE) for path in _DEVICES),
)
_OWN_PLACES = (*mounts.TEMPORARY, *mounts.SHARED_MEMORY)
_HIDDEN = mounts.existing(("/home", "/root", "/run"))
_RESOLVER = mounts.existing(("/etc/resolv.conf",))


def enter(levels: Iterable[str], plan: Plan) -> None:
    """Gives up what `levels` name, in their order; StartFailed where one cannot be had.

    For a process of one thread. Its working directory must be set anew.
    """
    chosen = tuple(levels)
    plan = replace(plan, own_view="mounts" in chosen)
    if plan.secrets and not plan.own_view:
        raise StartFailed(
            "Expected the level mounts of the sandbox, without which secrets cannot be files that "
            f"only their function sees, found {', '.join(chosen) or 'no level'}.",
            "See `stoker doctor`, or run the function on a node that has it.",
        )
    for level in chosen:
        try:
            _LEVELS[level](plan)
        except KeyError as error:
            raise StartFailed(
                f"Expected a level of the sandbox, found {level!r}.",
                "Run the same release of Stoker in agent and zygote.",
            ) from error
        except OSError as error:
            raise StartFailed(
                f"Expected to enter the level {level} of the sandbox, found: {_told(error)}.",
                "See `stoker doctor`; restart the agent if the machine was changed meanwhile.",
            ) from error


def probe(scratch: Path | None = None) -> dict[str, str]:
    """Each level with why it cannot be had on this machine; "" where it can.

    It is really entered, by a process that ends then. StartFailed if that one does not answer.
    """
    with tempfile.TemporaryDirectory(dir=scratch, prefix="sandbox-") as folder:
        command = [sys.executable, "-P", "-m", "stoker.runtime.sandbox", folder]
        try:
            ran = subprocess.run(
                command, capture_output=True, check=True, timeout=PROBE_SECONDS_MAXIMUM
            )
        except (subprocess.SubprocessError, OSError) as error:
            said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip()
            raise StartFailed(
                f"Expected to learn which levels of the sandbox this machine has, found: {error} "
                f"{said[-500:]}",
                "Run `python -m stoker.runtime.sandbox DIR` by hand.",
            ) from error
    found: dict[str, str] = orjson.loads(ran.stdout)
    return found


def in_force(found: Mapping[str, str]) -> tuple[str, ...]:
    """The levels that a probe found to be there, in the order in which they are entered."""
    return tuple(level for level in _LEVELS if found.get(level) == "")


def _told(error: OSError) -> str:
    """What was tried, or with which file, and the kernel's reason."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)


def _set_limits(plan: Plan) -> None:
    """RLIMIT_DATA refuses one request that can never fit, which is then told with its size.

    What was mapped before counts as well: the zygote's memory, and soon the model's weights.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if plan.private_bytes is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + plan.private_bytes + THREAD_STACKS_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _make_own_view(plan: Plan) -> None:
    kept = (*_INTERPRETER, *_RESOLVER, *mounts.existing(plan.readable))
    hidden = (*_HIDDEN, *mounts.existing(plan.hidden))
    work = os.path.realpath(plan.work_dir)
    mounts.make_own_view(work, hidden, kept, plan.secrets)


def _restrict_files(plan: Plan) -> None:
    own = [str(plan.work_dir), *(_OWN_PLACES if plan.own_view else ())]
    readable = (*plan.readable, *((mounts.SECRETS,) if plan.secrets else ()))
    landlock.restrict(
        [
            *_RULES,
            *((path, landlock.READ) for path in readable),
            *((path, landlock.WRITE) for path in own),
        ]
    )


_LEVELS: dict[str, Callable[[Plan], None]] = {
    "no-new-privileges": lambda _: linux.forbid_new_privileges(),
    "rlimits": _set_limits,
    "mounts": _make_own_view,
    "capabilities": lambda _: linux.drop_capabilities(),
    "landlock": _restrict_files,
    "seccomp": lambda _: seccomp.restrict(),
}


def _main(folder: Path) -> None:
    """Enters every level that it can and writes down which ones it could not."""
    (folder / "tmp").mkdir()
    plan = Plan(folder)
    found: dict[str, str] = {}
    for level, enter_level in _LEVELS.items():
        try:
            enter_level(plan)
        except OSError as error:
            found[level] = _told(error)
        else:
            found[level] = ""
            plan = replace(plan, own_view=plan.own_view or level == "mounts")
    sys.stdout.write(orjson.dumps(found).decode())


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
