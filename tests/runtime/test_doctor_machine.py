"""Memory, cores, instructions and GPUs, on machines of paper."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.nvml import compile_nvml
from stoker.runtime.doctor_machine import check_cores, check_digest_instructions, check_memory

GIB = 1 << 30


def meminfo(folder: Path, available_bytes: int) -> Path:
    path = folder / "meminfo"
    path.write_text(f"MemTotal: 999 kB\nMemAvailable: {available_bytes // 1024} kB\n")
    return path


def limited(folder: Path, memory_bytes: int) -> Path:
    (folder / "memory.max").write_text(f"{memory_bytes}\n")
    return folder


@pytest.mark.parametrize(
    ("pool_bytes", "available_bytes", "expected"),
    [
        (GIB // 4, GIB // 2, "ok"),
        (GIB // 2, GIB // 4, "warn"),
        (GIB, GIB // 2, "fail"),
        (2 * GIB, GIB // 2, "fail"),
    ],
)
def test_the_pool_must_fit_into_what_may_be_used(
    tmp_path: Path, pool_bytes: int, available_bytes: int, expected: str
) -> None:
    check = check_memory(pool_bytes, meminfo(tmp_path, available_bytes), limited(tmp_path, GIB))

    assert check.state == expected
    assert "1.0 GiB that may be used" in check.found
    assert ("--dram-bytes" in check.remedy) == (expected != "ok")


def test_enough_cores_are_good(tmp_path: Path) -> None:
    assert check_cores(tmp_path, cores=4).state == "ok"


def test_one_core_is_few(tmp_path: Path) -> None:
    assert check_cores(tmp_path, cores=1).state == "warn"


@pytest.mark.parametrize(
    ("quota", "expected"), [("50000 100000", "warn"), ("300000 100000", "ok"), ("max 100000", "ok")]
)
def test_a_quota_of_a_control_group_counts(tmp_path: Path, quota: str, expected: str) -> None:
    (tmp_path / "cpu.max").write_text(quota)

    check = check_cores(tmp_path, cores=8)
    assert check.state == expected
    assert ("limited" in check.found) == ("max" not in quota)


def test_an_older_control_group_counts_too(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("150000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")

    assert "limited to 1.5" in check_cores(tmp_path, cores=8).found


@pytest.mark.parametrize(
    ("text", "architecture", "expected"),
    [
        ("processor : 0\nflags : fpu sse4_2 avx\n", "x86_64", "ok"),
        ("processor : 0\nflags : fpu avx\n", "x86_64", "warn"),
        ("Features : fp crc32\n", "aarch64", "ok"),
    ],
)
def test_the_digest_wants_its_instruction(
    tmp_path: Path, text: str, architecture: str, expected: str
) -> None:
    (tmp_path / "cpuinfo").write_text(text)

    assert check_digest_instructions(tmp_path / "cpuinfo", architecture).state == expected


def gpus_seen(library_folder: Path) -> list[str]:
    """State and sentence of the check in a process that finds libraries there."""
    code = (
        "from stoker.runtime.doctor_machine import check_gpus; import sys;"
        "check = check_gpus(); sys.stdout.write(f'{check.state}|{check.found}')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"LD_LIBRARY_PATH": str(library_folder)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return ran.stdout.split("|")


def test_gpus_are_named_with_their_memory_and_driver(tmp_path: Path) -> None:
    state, found = gpus_seen(compile_nvml(tmp_path, "NVIDIA A10", "Tesla T4"))

    assert state == "ok"
    assert found.startswith(
        "NVIDIA A10 (a10) with 24.0 GiB, Tesla T4 (t4) with 24.0 GiB; driver 570.1"
    )


def test_a_driver_without_gpus_means_the_cpu(tmp_path: Path) -> None:
    state, found = gpus_seen(compile_nvml(tmp_path))

    assert (state, "CPU only" in found) == ("ok", True)


def test_a_broken_driver_is_told(tmp_path: Path) -> None:
    state, found = gpus_seen(compile_nvml(tmp_path, "NVIDIA A10", init=18))

    assert state == "warn"
    assert "mismatch" in found.lower()


def test_a_library_that_cannot_be_loaded_is_no_driver(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("not a library")

    assert gpus_seen(tmp_path) == ["ok", "No NVIDIA driver was found: CPU only."]
