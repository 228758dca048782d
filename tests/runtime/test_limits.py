"""What this process may use, as control groups of both versions say it."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from stoker.runtime.limits import free_memory_bytes


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:    1000000 kB\nMemAvailable:     500 kB\nCached:    7 kB\n")
    return path


def group(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")
    return folder


def test_without_a_control_group_what_the_machine_has_available_is_free(
    tmp_path: Path, meminfo: Path
) -> None:
    assert free_memory_bytes(tmp_path / "none", meminfo) == 500 * 1024


def test_this_machine_says_what_psutil_says() -> None:
    found = free_memory_bytes(Path("/nonexistent"))

    assert found == pytest.approx(psutil.virtual_memory().available, rel=0.2)


@pytest.mark.parametrize(
    ("maximum", "expected"), [("300000", 60_000), ("max", 512_000), ("200000", 0)]
)
def test_a_group_of_version_2_counts_cached_files_as_free(
    tmp_path: Path, meminfo: Path, maximum: str, expected: int
) -> None:
    root = group(
        tmp_path / "cgroup",
        memory__max=maximum,
        memory__current="250000",
        memory__stat="anon 5\nshmem 9000\ninactive_file 8000\nactive_file 2000\nfile 99000",
    )

    assert free_memory_bytes(root, meminfo) == expected


def test_a_group_of_version_1_counts_as_well(tmp_path: Path, meminfo: Path) -> None:
    group(
        tmp_path / "cgroup" / "memory",
        memory__limit_in_bytes="300000",
        memory__usage_in_bytes="250000",
        memory__stat="inactive_file 8000\nactive_file 2000\ntotal_inactive_file 8000",
    )

    assert free_memory_bytes(tmp_path / "cgroup", meminfo) == 60_000
