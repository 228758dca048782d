from __future__ import annotations

from stoker.runtime.doctor_sandbox import check_limits, check_sandbox

EVERYTHING = dict.fromkeys(
    ("no-new-privileges", "rlimits", "mounts", "capabilities", "landlock", "seccomp"), ""
)


def test_every_level_is_named_when_all_are_there() -> None:
    check = check_sandbox(EVERYTHING)

    assert (check.state, check.remedy) == ("ok", "")
    assert all(level in check.found for level in EVERYTHING)


def test_what_is_not_there_is_told_with_the_kernels_reason_and_a_remedy() -> None:
    missing = {"mounts": "make namespaces: Operation not permitted", "landlock": "…"}
    check = check_sandbox(EVERYTHING | missing)

    assert check.state == "warn"
    assert "but not by mounts (make namespaces: Operation not permitted)" in check.found
    assert "CAP_SYS_ADMIN" in check.remedy
    assert "lsm=" in check.remedy


def test_this_machines_kernel_is_really_asked() -> None:
    assert "no-new-privileges, rlimits" in check_sandbox().found


def test_limits_that_nobody_enforces_are_told() -> None:
    check = check_limits({"cpu": "no control group has this controller"})

    assert check.state == "warn"
    assert "to memory, pids, but not to cpu (no control group has this controller)" in check.found
    assert "Delegate=yes" in check.remedy
    assert check_limits({}).state == "ok"


def test_this_machines_control_groups_are_really_looked_at() -> None:
    check = check_limits()

    assert check.found.startswith("Control groups hold functions to")
    assert bool(check.remedy) == (check.state == "warn")
