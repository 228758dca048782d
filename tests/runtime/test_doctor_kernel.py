"""Huge pages, shared memory, io_uring and limits, as fake kernels report them."""

import errno
import resource
from pathlib import Path

import pytest

from stoker.runtime.doctor_kernel import (
    check_anonymous_huge_pages,
    check_io_uring,
    check_locked_memory,
    check_open_files,
    check_shared_huge_pages,
    check_shared_memory,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("always within_size [advise] never deny force\n", "ok"),
        ("[always] within_size advise never deny force\n", "ok"),
        ("always within_size advise [never] deny force\n", "warn"),
        ("always within_size advise never [deny] force\n", "warn"),
        ("", "warn"),
    ],
)
def test_shared_huge_pages_are_read_from_the_kernel(
    tmp_path: Path, text: str, expected: str
) -> None:
    setting = tmp_path / "shmem_enabled"
    setting.write_text(text)

    check = check_shared_huge_pages(tmp_path)
    assert check.state == expected
    assert (f"echo advise > {setting}" in check.remedy) == (expected == "warn")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("always [madvise] never", "ok"), ("[always] madvise never", "ok"), ("[never]", "warn")],
)
def test_anonymous_huge_pages_are_read_from_the_kernel(
    tmp_path: Path, text: str, expected: str
) -> None:
    setting = tmp_path / "enabled"
    setting.write_text(text)

    check = check_anonymous_huge_pages(tmp_path)
    assert check.state == expected
    assert (f"echo madvise > {setting}" in check.remedy) == (expected == "warn")


def test_a_kernel_without_huge_pages_is_told(tmp_path: Path) -> None:
    check = check_shared_huge_pages(tmp_path)

    assert check.state == "warn"
    assert "CONFIG_TRANSPARENT_HUGEPAGE" in check.remedy


def test_memory_files_are_really_made() -> None:
    check = check_shared_memory()

    assert check.state == "ok"
    assert "/dev/shm is not used" in check.found


def test_a_kernel_that_makes_no_memory_file_fails() -> None:
    def refuse(name: str) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    check = check_shared_memory(refuse)
    assert check.state == "fail"
    assert "memfd_create" in check.remedy


@pytest.mark.parametrize(
    ("code", "said"),
    [(0, "available"), (errno.ENOSYS, "not in this kernel"), (errno.EPERM, "not allowed")],
)
def test_io_uring_is_for_information(code: int, said: str) -> None:
    check = check_io_uring(lambda: code)

    assert check.state == "ok"
    assert said in check.found


def test_io_uring_is_really_tried() -> None:
    assert "io_uring is" in check_io_uring().found


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(1024, "warn"), (4095, "warn"), (4096, "ok"), (resource.RLIM_INFINITY, "ok")],
)
def test_the_open_file_limit_is_judged(limit: int, expected: str) -> None:
    check = check_open_files(limit)

    assert check.state == expected
    assert ("ulimit -n" in check.remedy) == (expected == "warn")


def test_the_limits_of_this_process_are_read() -> None:
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    assert check_open_files() == check_open_files(soft)


@pytest.mark.parametrize(
    ("limit", "said"), [(8 << 20, "8.0 MiB"), (0, "0 B"), (resource.RLIM_INFINITY, "any amount")]
)
def test_locked_memory_is_for_information(limit: int, said: str) -> None:
    check = check_locked_memory(limit)

    assert check.state == "ok"
    assert said in check.found
