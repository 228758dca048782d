"""The levels of the sandbox, entered for real by processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.workers import sandbox_levels
from stoker.runtime import landlock, mounts, sandbox

NOBODY = 65534
ALL = ("no-new-privileges", "rlimits", "mounts", "capabilities", "landlock", "seccomp")
PRELUDE = """
import json, os, signal, subprocess, sys
from pathlib import Path
from stoker.placement.errors import StokerError
from stoker.runtime import linux, mounts, sandbox

def attempt(act):
    try:
        found = act()
    except OSError as error:
        return error.strerror
    return found if isinstance(found, (str, int, list)) else "done"

work, levels, hidden, readable, private_bytes, user = json.loads(sys.argv[1])
if user is not None:
    # As if this had been started by that user, whose Python would lie where that one can read.
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    linux.prctl("be dumpable as after exec", 4, 1)
    sandbox._INTERPRETER = mounts.existing(sandbox._INTERPRETER)
    sandbox._RULES = [(path, access) for path, access in sandbox._RULES if os.path.exists(path)]
plan = sandbox.Plan(Path(work), tuple(readable), tuple(hidden), private_bytes)
try:
    sandbox.enter(levels, plan)
except StokerError as error:
    print(json.dumps({"refused": str(error)}))
    sys.exit()
os.chdir(work)
told = {}
"""
NO_ENTRY = "Permission denied"
READ_ONLY = "Read-only file system"
NOT_THERE = "No such file or directory"


def needs(*levels: str) -> pytest.MarkDecorator:
    """Skips, with the kernel's own reason, where the machine has not all of `levels`."""
    found = sandbox.probe()
    missing = [f"{level}: {found[level]}" for level in levels if found[level]]
    return pytest.mark.skipif(bool(missing), reason="; ".join(missing))


def inside(
    work: Path,
    code: str,
    levels: tuple[str, ...] = (),
    *,
    hidden: tuple[str, ...] = (),
    readable: tuple[str, ...] = (),
    private_bytes: int | None = None,
    user: int | None = None,
) -> dict[str, object]:
    """What `code` put into `told`, in a process that entered `levels`, all there are by default."""
    (work / "tmp").mkdir(parents=True, exist_ok=True)
    if user is not None:
        os.chown(work, user, user)
        os.chown(work / "tmp", user, user)
    chosen = levels or sandbox_levels()
    given = json.dumps([str(work), chosen, hidden, readable, private_bytes, user])
    ran = subprocess.run(
        [sys.executable, "-P", "-c", PRELUDE + code + "\nprint(json.dumps(told))", given],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert ran.returncode == 0, ran.stderr
    told: dict[str, object] = json.loads(ran.stdout.splitlines()[-1])
    return told


def make_reachable(folder: Path) -> None:
    """For every user, as the folders of a node would be for its own."""
    for each in (folder, *folder.parents):
        if not each.stat().st_mode & 0o001:
            each.chmod(each.stat().st_mode | 0o011)


def test_a_probe_answers_for_every_level_in_their_order() -> None:
    found = sandbox.probe()

    assert tuple(found) == ALL
    assert sandbox.in_force(found) == tuple(level for level in ALL if not found[level])
    assert {"no-new-privileges", "rlimits", "capabilities"} <= {*sandbox.in_force(found)}


def test_a_level_that_is_not_there_ends_the_start(tmp_path: Path) -> None:
    told = inside(tmp_path / "w", "", ("no-new-privileges", "moat"))

    assert "Expected a level of the sandbox, found 'moat'" in str(told["refused"])


@needs("landlock")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody without rights")
def test_a_level_that_the_kernel_refuses_ends_the_start(tmp_path: Path) -> None:
    make_reachable(tmp_path)
    told = inside(tmp_path / "w", "", ("landlock",), user=NOBODY)  # without no_new_privs

    assert "the level landlock of the sandbox, found: apply Landlock rules: " in str(
        told["refused"]
    )


def test_nothing_gives_capabilities_back(tmp_path: Path) -> None:
    code = """
status = Path("/proc/self/status").read_text()
told |= {line.split(":")[0]: line.split()[1] for line in status.splitlines() if "Cap" in line}
told["nnp"] = "NoNewPrivs:\\t1" in status
told["child"] = subprocess.run(["grep", "CapEff", "/proc/self/status"],
                               capture_output=True, text=True).stdout.split()[1]
"""
    told = inside(tmp_path / "w", code, ("no-new-privileges", "capabilities"))

    zero = "0" * 16
    assert {told[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb", "child")} == {zero}
    assert told["nnp"]
    if os.getuid() == 0:
        assert told["CapBnd"] == zero


@needs("landlock")
def test_landlock_leaves_the_system_to_read_and_the_work_folder_to_write(tmp_path: Path) -> None:
    secret, code_dir = tmp_path / "secret", tmp_path / "code"
    secret.write_text("s")
    code_dir.mkdir()
    (code_dir / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (code_dir / "run.sh").chmod(0o755)
    code = f"""
told["library"] = attempt(lambda: Path("/usr/bin/env").open("rb").read(1) and "read")
told["secret"] = attempt(lambda: Path({str(secret)!r}).read_text())
told["folder"] = attempt(lambda: os.listdir({str(tmp_path)!r}))
told["shadow"] = attempt(lambda: Path("/etc/shadow").open())
told["own"] = attempt(lambda: Path("made").write_text("x"))
told["moved"] = attempt(lambda: os.makedirs("a/b") or os.rename("made", "a/b/made"))
told["etc"] = attempt(lambda: Path("/etc/hosts").open("a"))
told["null"] = attempt(lambda: Path("/dev/null").write_text("x"))
told["code"] = attempt(lambda: Path({str(code_dir)!r}, "new").write_text("x"))
told["runs"] = subprocess.run([{str(code_dir / "run.sh")!r}], capture_output=True,
                              text=True).stdout
told["memory"] = attempt(lambda: os.write(os.memfd_create("m"), b"abc"))
told["module"] = __import__("colorsys").__name__
told["agent"] = attempt(lambda: Path(f"/proc/{{os.getppid()}}/environ").read_bytes().hex())
told["kill"] = attempt(lambda: os.kill(os.getppid(), 0))
child = subprocess.Popen(["sleep", "30"])
told["child"] = attempt(lambda: child.kill())
"""
    levels = ("no-new-privileges", "capabilities", "landlock")
    told = inside(tmp_path / "w", code, levels, readable=(str(code_dir),))

    assert told == {
        "library": "read",
        "secret": NO_ENTRY,
        "folder": NO_ENTRY,
        "shadow": NO_ENTRY,
        "own": 1,
        "moved": "done",
        "etc": NO_ENTRY,
        "null": 1,
        "code": NO_ENTRY,
        "runs": "ran\n",
        "memory": 3,
        "module": "colorsys",
        "agent": NO_ENTRY,
        "kill": "Operation not permitted" if landlock.abi() >= 6 else "done",
        "child": "done",
    }


@needs("mounts")
def test_mounts_hide_the_node_and_give_a_temporary_folder_of_its_own(tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "auth").mkdir(parents=True)
    (state / "auth" / "token").write_text("t")
    (state / "code").mkdir()
    (state / "code" / "handler.py").write_text("x = 1")
    layout = state / "layout.json"
    layout.write_text("{}")
    code = f"""
told["hidden"] = attempt(lambda: Path({str(state / "auth/token")!r}).read_text())
told["state"] = attempt(lambda: sorted(os.listdir({str(state)!r})))
told["kept"] = attempt(lambda: Path({str(state / "code/handler.py")!r}).read_text())
told["kept file"] = attempt(lambda: Path({str(layout)!r}).read_text())
told["kept is read-only"] = attempt(lambda: Path({str(state / "code/new")!r}).write_text(""))
told["root"] = attempt(lambda: Path("/etc/new").write_text(""))
told["home"] = attempt(lambda: Path("/root", "new").write_text(""))
told["tuning"] = attempt(lambda: Path("/proc/sys/kernel/core_pattern").open("w"))
told["tmp"] = attempt(lambda: Path("/tmp/new").write_text("n"))
told["same"] = attempt(lambda: Path("tmp/new").read_text())
told["shm"] = attempt(lambda: os.listdir("/dev/shm"))
told["shm is writable"] = attempt(lambda: Path("/dev/shm/x").write_text("n"))
told["run"] = attempt(lambda: os.listdir("/run"))
told["work"] = attempt(lambda: Path({str(state / "w/made")!r}).write_text("n"))
told["module"] = __import__("colorsys").__name__
"""
    told = inside(
        state / "w",
        code,
        ("no-new-privileges", "mounts"),
        hidden=(str(state),),
        readable=(str(state / "code"), str(layout)),
    )

    assert told.pop("run") in ([], ["systemd"], ["resolvconf"])
    assert told == {
        "hidden": NOT_THERE,
        "state": ["code", "layout.json", "w"],
        "kept": "x = 1",
        "kept file": "{}",
        "kept is read-only": READ_ONLY,
        "root": READ_ONLY,
        "home": READ_ONLY,
        "tuning": READ_ONLY,
        "tmp": 1,
        "same": "n",
        "shm": [],
        "shm is writable": 1,
        "work": 1,
        "module": "colorsys",
    }
    assert not Path("/tmp/new").exists()
    assert (state / "w" / "made").read_text() == "n"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody without rights")
def test_a_node_without_rights_has_what_user_namespaces_allow(tmp_path: Path) -> None:
    if not os.access("/proc/sys/user/max_user_namespaces", os.R_OK):
        pytest.skip("this kernel has no user namespaces")
    make_reachable(tmp_path)
    code = """
told["uid"] = os.getuid()
told["tmp"] = attempt(lambda: Path("/tmp/new").write_text("n"))
told["seen"] = attempt(lambda: Path("tmp/new").read_text())
told["root"] = attempt(lambda: Path("/var/new").write_text(""))
told["effective"] = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines()
                     if line.startswith("CapEff")]
"""
    told = inside(tmp_path / "w", code, user=NOBODY)

    if "refused" in told and "make namespaces" in str(told["refused"]):
        pytest.skip(f"user namespaces are not for everyone here: {told['refused']}")
    assert told["uid"] == NOBODY
    assert (told["tmp"], told["seen"]) == (1, "n")
    assert told["root"] in (NO_ENTRY, READ_ONLY)
    assert told["effective"] == ["0" * 16]


def test_an_allocation_over_the_limit_is_refused_with_its_size(tmp_path: Path) -> None:
    code = """
import numpy
fits = numpy.ones(16 << 20, numpy.uint8)
try:
    numpy.ones(4 << 30, numpy.uint8)
except MemoryError as error:
    told["error"] = str(error)
"""
    told = inside(tmp_path / "w", code, private_bytes=64 << 20)

    assert "Unable to allocate 4.00 GiB" in str(told["error"])


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["/a/b", "/a", "/ab"], ["/a", "/ab"]),
        (["/b", "/a/c/d", "/a/c"], ["/a/c", "/b"]),
        ([], []),
    ],
)
def test_of_folders_in_folders_only_the_outer_ones_count(
    paths: list[str], expected: list[str]
) -> None:
    assert mounts.outermost(paths) == expected
