"""The state directory, its space, and whether direct reads work there."""

from pathlib import Path

import pytest

from stoker.runtime.doctor_disk import (
    check_direct_reads,
    check_disk_space,
    check_state_directory,
    direct_alignment_bytes,
    filesystem_type,
    read_directly,
)


def mounts(folder: Path, kind: str) -> Path:
    """A mountinfo in which what `folder` holds lies on `kind` and everything else on ext4."""
    path = folder / "mountinfo"
    path.write_text(
        "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
        f"28 27 0:24 / {folder} rw,relatime shared:1 - {kind} none rw\n"
    )
    return path


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    path.mkdir(mode=0o700)
    return path


def test_a_private_directory_on_a_disk_is_good(state: Path) -> None:
    check = check_state_directory(state, mounts(state.parent, "xfs"))

    assert (check.state, check.remedy) == ("ok", "")
    assert "xfs" in check.found
    assert list(state.iterdir()) == []


def test_a_directory_that_is_not_there_yet_is_good_and_stays_away(tmp_path: Path) -> None:
    state = tmp_path / "a" / "b"
    check = check_state_directory(state, mounts(tmp_path, "ext4"))

    assert check.state == "ok"
    assert "still to be made" in check.found
    assert not state.parent.exists()


def test_a_file_instead_of_the_directory_fails(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")

    check = check_state_directory(tmp_path / "state")
    assert check.state == "fail"
    assert "is not a directory" in check.found
    assert "--state" in check.remedy


def test_a_directory_that_cannot_be_written_fails() -> None:
    check = check_state_directory(Path("/proc/self"))

    assert check.state == "fail"
    assert "a file cannot be made" in check.found


@pytest.mark.parametrize("kind", ["tmpfs", "overlay", "nfs4"])
def test_a_file_system_that_loses_or_breaks_the_store_is_told(state: Path, kind: str) -> None:
    check = check_state_directory(state, mounts(state.parent, kind))

    assert check.state == "warn"
    assert f"lies on {kind}" in check.found
    assert check.remedy


def test_a_password_that_others_can_read_is_told(state: Path) -> None:
    password = state / "auth" / "password"
    password.parent.mkdir(mode=0o700)
    password.write_text("secret")
    password.chmod(0o644)

    check = check_state_directory(state)
    assert check.state == "warn"
    assert str(password) in check.remedy


@pytest.mark.parametrize(
    ("free", "expected"), [(1 << 20, "fail"), (1 << 30, "warn"), (8 << 30, "ok")]
)
def test_free_space_is_judged_by_what_is_wanted(tmp_path: Path, free: int, expected: str) -> None:
    assert check_disk_space(tmp_path, 4 << 30, lambda _: free).state == expected


def test_the_real_disk_has_some_space(tmp_path: Path) -> None:
    assert f"are free at {tmp_path}." in check_disk_space(tmp_path / "not-there").found


def test_a_refused_direct_read_means_buffered_reads(tmp_path: Path) -> None:
    check = check_direct_reads(tmp_path, mounts(tmp_path, "fuse"), lambda _: "refused")

    assert check.state == "warn"
    assert "buffered reads are used" in check.found


def test_memory_needs_no_direct_reads(tmp_path: Path) -> None:
    check = check_direct_reads(tmp_path, mounts(tmp_path, "tmpfs"), lambda _: "")

    assert check.state == "warn"
    assert "buffered reads are used" in check.found


def test_working_direct_reads_are_good(tmp_path: Path) -> None:
    assert check_direct_reads(tmp_path, mounts(tmp_path, "ext4"), lambda _: "").state == "ok"


def test_direct_reads_are_really_tried_and_leave_nothing(tmp_path: Path) -> None:
    assert isinstance(read_directly(tmp_path), str)
    assert list(tmp_path.iterdir()) == []
    assert "no file can be made" in read_directly(tmp_path / "absent")


def test_the_alignment_is_a_power_of_two_or_unknown(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(4096))

    alignment = direct_alignment_bytes(file)
    assert alignment is None or alignment.bit_count() == 1
    assert direct_alignment_bytes(tmp_path / "absent") is None


def test_the_deepest_mount_decides_and_of_two_the_later(tmp_path: Path) -> None:
    table = tmp_path / "table"
    table.write_text(
        "1 0 0:1 / / rw - ext4 a rw\n"
        f"2 1 0:2 / {tmp_path} rw - nfs b rw\n"
        f"3 1 0:3 / {tmp_path} rw - overlay c rw\n"
        "broken\n"
    )

    assert filesystem_type(tmp_path / "x", table) == "overlay"
    assert filesystem_type(Path("/"), table) == "ext4"
    assert filesystem_type(tmp_path, tmp_path / "absent") == "unknown"
