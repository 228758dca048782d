"""Control groups: real ones where this machine lets us make any, and made-up trees for the rest."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stoker.placement.errors import StartFailed
from stoker.placement.resources import Limits
from stoker.runtime import cgroup_trees
from stoker.runtime.cgroups import (
    CONTROLLERS,
    PIDS_DEFAULT,
    ControlGroups,
    Controller,
    Group,
    Hierarchy,
    Joining,
)

LIMITS = Limits(memory_bytes=64 << 20, cores=0.5, pids=30)


def written(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def tree_of_version_2(root: Path, enabled: str, processes: str = "") -> Path:
    """A made-up group below `root`, as a container sees the one that it was given."""
    base = root / "given"
    base.mkdir(parents=True)
    (base / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (base / "cgroup.subtree_control").write_text(enabled)
    (base / "cgroup.procs").write_text(processes)
    return base


def find_in(root: Path, mounts: str, membership: str, *, claim: bool = False) -> ControlGroups:
    (root / "mountinfo").write_text(mounts)
    (root / "cgroup").write_text(membership)
    return cgroup_trees.find(root / "mountinfo", root / "cgroup", claim=claim)


def mounted(at: Path, kind: str, options: str, root: str = "/") -> str:
    return f"30 25 0:26 {root} {at} rw,nosuid shared:9 - {kind} {kind} {options}\n"


@pytest.fixture
def groups() -> ControlGroups:
    """Those of this machine, which a test of version 2 must not move."""
    found = cgroup_trees.find(claim=False)
    if any(tree.version == 2 for tree in found._hierarchies):
        pytest.skip("version 2 would move the tests to another group")
    return found


@pytest.fixture
def real(groups: ControlGroups) -> ControlGroups:
    if groups.missing:
        pytest.skip(f"no control groups to write here: {groups.missing}")
    return groups


def run_in(group: Group, code: str) -> subprocess.CompletedProcess[str]:
    script = (
        "import json, sys\nfrom stoker.runtime.cgroups import Joining\n"
        "joining = Joining(json.loads(sys.argv[1]))\njoining.begin()\njoining.wait()\n" + code
    )
    command = [sys.executable, "-P", "-c", script, json.dumps(group.join_paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_group_is_filled_limited_and_removed(real: ControlGroups) -> None:
    group = real.create("1-1", LIMITS)
    try:
        ran = run_in(group, "print(open('/proc/self/cgroup').read())")
        limits: set[str] = set().union(*map(names, group.folders))
    finally:
        group.remove()

    name = f"stoker-{os.getpid()}-1-1"
    held = {line.split(":")[1] for line in ran.stdout.split() if line.endswith(name)}
    assert {c for names in held for c in names.split(",")} >= set(CONTROLLERS), ran.stderr
    assert {"memory.limit_in_bytes", "pids.max", "cpu.cfs_quota_us"} <= limits
    assert not [folder for folder in group.folders if folder.exists()]


def test_who_takes_more_memory_is_killed_alone_and_the_group_says_so(real: ControlGroups) -> None:
    group = real.create("1-2", Limits(memory_bytes=48 << 20))
    try:
        fine = run_in(group, "b = bytearray(8 << 20)")
        before = group.memory_story()
        killed = run_in(group, "b = bytearray(96 << 20)")
        story = group.memory_story()
    finally:
        group.remove()

    assert (fine.returncode, before) == (0, None)
    assert killed.returncode == -9
    assert story is not None
    assert story.startswith("Expected at most 50,331,648 bytes of memory (limits.memory), found")
    held = re.search(r"asked for more when it held ([\d,]+) bytes", story)
    assert held is not None
    assert 44 << 20 < int(held[1].replace(",", "")) <= 48 << 20


def test_processes_over_the_limit_are_refused_and_counted(real: ControlGroups) -> None:
    group = real.create("1-3", Limits(pids=6))
    code = """
import threading, time
refused = 0
for _ in range(10):
    try:
        threading.Thread(target=time.sleep, args=(0.2,)).start()
    except RuntimeError:
        refused += 1
print(refused)
"""
    try:
        ran = run_in(group, code)
        story = group.pids_story()
    finally:
        group.remove()

    assert ran.stdout.split() == ["5"], ran.stderr
    assert story == (
        "Expected at most 6 processes and threads (limits.pids), "
        "found that 5 more were wanted and refused."
    )


def test_cores_over_the_limit_are_not_given(real: ControlGroups) -> None:
    group = real.create("1-4", Limits(cores=0.1))
    code = """
import time
began, used = time.monotonic(), time.process_time()
while time.monotonic() - began < 0.6:
    pass
print(time.process_time() - used)
"""
    try:
        ran = run_in(group, code)
    finally:
        group.remove()

    # Of 0.6 s it may compute 0.06 s, and one period of 0.1 s in advance.
    assert float(ran.stdout) < 0.3, ran.stderr


def test_what_left_its_session_ends_with_its_group(real: ControlGroups) -> None:
    group = real.create("1-5", Limits())
    code = """
import subprocess
quiet = subprocess.DEVNULL
print(subprocess.Popen(["sleep", "60"], start_new_session=True, stdout=quiet, stderr=quiet).pid)
"""
    ran = run_in(group, code)
    pid = int(ran.stdout)
    assert Path(f"/proc/{pid}").exists()

    group.remove()

    assert not [folder for folder in group.folders if folder.exists()]
    stat = Path(f"/proc/{pid}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_groups_of_agents_that_are_gone_are_removed(real: ControlGroups) -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait(10)
    left = [tree.folder / f"stoker-{gone.pid}-1-9" for tree in real._hierarchies]
    own = real.create("1-6", LIMITS)
    for folder in left:
        folder.mkdir()

    real.remove_leftovers()
    kept = [folder.exists() for folder in own.folders]
    own.remove()

    assert not [folder for folder in left if folder.exists()]
    assert all(kept)


def test_version_2_is_joined_in_the_background() -> None:
    unified = Path("/sys/fs/cgroup")
    if not (unified / "cgroup.controllers").exists():
        unified /= "unified"
    own = [x[3:] for x in Path("/proc/self/cgroup").read_text().split() if x.startswith("0::")]
    folder = unified / own[0].lstrip("/") / f"stoker-{os.getpid()}-join" if own else unified
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no group of version 2 can be made here: {error}")
    try:
        group = Group([folder], [str(folder / "cgroup.procs")])
        ran = run_in(group, "print(open('/proc/self/cgroup').read())")
    finally:
        folder.rmdir()

    assert [line for line in ran.stdout.split() if line.endswith(folder.name)], ran.stderr


def test_a_group_that_is_gone_cannot_be_joined(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="No such file"):
        Joining([str(tmp_path / "none" / "tasks")])


def test_the_controllers_that_version_2_hands_on_are_used(tmp_path: Path) -> None:
    base = tree_of_version_2(tmp_path / "fs", "cpu memory pids", "1\n2\n")
    found = find_in(tmp_path, mounted(tmp_path / "fs", "cgroup2", "rw"), "0::/given\n", claim=True)

    assert (found.missing, found.levels) == ({}, ("cgroup-memory", "cgroup-pids", "cgroup-cpu"))
    group = found.create("1-1", LIMITS)
    assert group.folders == [base / f"stoker-{os.getpid()}-1-1"]
    assert group.join_paths == [f"{group.folders[0]}/cgroup.procs"]
    assert written(group.folders[0]) == {
        "memory.max": str(64 << 20),
        "pids.max": "30",
        "cpu.max": "50000 100000",
    }


def test_a_container_finds_its_own_part_of_a_tree(tmp_path: Path) -> None:
    base = tree_of_version_2(tmp_path / "fs", "cpu memory pids")
    mounts = mounted(tmp_path / "fs", "cgroup2", "rw", root="/docker/1")
    found = find_in(tmp_path, mounts, "0::/docker/1/given/stoker-main\n")

    assert found._hierarchies == (Hierarchy(2, base, CONTROLLERS),)
    elsewhere = find_in(tmp_path, mounts, "0::/docker/12\n")
    assert set(elsewhere.missing) == set(CONTROLLERS)


def test_a_group_with_other_processes_is_left_alone(tmp_path: Path) -> None:
    tree_of_version_2(tmp_path / "fs", "", f"{os.getpid()}\n1\n")
    mounts = mounted(tmp_path / "fs", "cgroup2", "rw")
    found = find_in(tmp_path, mounts, "0::/given\n")

    assert set(found.missing) == set(CONTROLLERS)
    assert "processes that are not Stoker's own, such as 1" in found.missing["memory"]


def test_trees_of_version_1_hold_one_limit_each(tmp_path: Path) -> None:
    trees: dict[Controller, str] = {"memory": "memory", "pids": "pids", "cpu": "cpu,cpuacct"}
    mounts, membership = "", "3:name=systemd:/\n0::/\n"
    for number, (name, controllers) in enumerate(trees.items(), 7):
        (tmp_path / name / "box").mkdir(parents=True)
        mounts += mounted(tmp_path / name, "cgroup", f"rw,{controllers}")
        membership += f"{number}:{controllers}:/box\n"
    found = find_in(tmp_path, mounts, membership)
    group = found.create("1-1", LIMITS)

    assert [tree.controllers for tree in found._hierarchies] == [("memory",), ("pids",), ("cpu",)]
    name = f"stoker-{os.getpid()}-1-1"
    assert group.join_paths == [f"{tmp_path}/{tree}/box/{name}/tasks" for tree in trees]
    assert [written(folder) for folder in group.folders] == [
        {"memory.limit_in_bytes": str(64 << 20)},
        {"pids.max": "30"},
        {"cpu.cfs_quota_us": "50000"},
    ]
    alone = found.create("1-2", Limits())
    assert [written(folder) for folder in alone.folders] == [{"pids.max": str(PIDS_DEFAULT)}]


def test_without_control_groups_nothing_is_held_and_that_is_said(tmp_path: Path) -> None:
    found = find_in(tmp_path, "", "0::/\n")

    assert found.levels == ()
    assert set(found.missing) == set(CONTROLLERS)
    assert found.create("1-1", LIMITS).join_paths == []
