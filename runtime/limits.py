"""What this process may use of the machine: cores and memory, under control groups 1 and 2."""

from __future__ import annotations

import os
import re
from pathlib import Path

GIB = 1 << 30
CGROUP_ROOT = Path("/sys/fs/cgroup")
DRAM_BYTES_DEFAULT_MAXIMUM = 8 * GIB


def core_count(cgroup_root: Path = CGROUP_ROOT) -> int:
    """Whole cores that this process may use at once, at least 1."""
    cores = len(os.sched_getaffinity(0))
    quota = core_quota(cgroup_root)
    return max(1, cores if quota is None else min(cores, int(quota)))


def core_quota(cgroup_root: Path = CGROUP_ROOT) -> float | None:
    """The control group's share of the processors in cores; None without a limit."""
    quota, _, period = _read(cgroup_root / "cpu.max").partition(" ")
    if not quota:
        quota = _read(cgroup_root / "cpu" / "cpu.cfs_quota_us")
        period = _read(cgroup_root / "cpu" / "cpu.cfs_period_us")
    limited = quota.isdecimal() and period.isdecimal() and int(period) > 0
    return int(quota) / int(period) if limited else None


def memory_bytes(cgroup_root: Path = CGROUP_ROOT) -> int:
    """The machine's memory, or the control group's limit where that is less."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _read(cgroup_root / "memory.max")
    limit = limit or _read(cgroup_root / "memory" / "memory.limit_in_bytes")
    return min(memory, int(limit)) if limit.isdecimal() else memory


def free_memory_bytes(
    cgroup_root: Path = CGROUP_ROOT, meminfo: Path = Path("/proc/meminfo")
) -> int:
    """What processes can still get: of the machine, or of the control group where that is less.

    Cached pages of files count as free, for the kernel gives them up.
    """
    found = re.search(r"^MemAvailable:\s*(\d+) kB$", _read(meminfo), re.MULTILINE)
    free = [int(found[1]) * 1024 if found else memory_bytes(cgroup_root)]
    version_1 = cgroup_root / "memory"
    for limit, used, stat in (
        (cgroup_root / "memory.max", cgroup_root / "memory.current", cgroup_root / "memory.stat"),
        (
            version_1 / "memory.limit_in_bytes",
            version_1 / "memory.usage_in_bytes",
            version_1 / "memory.stat",
        ),
    ):
        limit_bytes, used_bytes = _read(limit), _read(used)
        if limit_bytes.isdecimal() and used_bytes.isdecimal():
            files = re.findall(r"^(?:in)?active_file (\d+)$", _read(stat), re.MULTILINE)
            free.append(int(limit_bytes) - int(used_bytes) + sum(map(int, files)))
    return max(0, min(free))


def default_dram_bytes(memory: int) -> int:
    """The size of the pool of a machine with `memory` bytes that was told none."""
    return min(memory // 4, DRAM_BYTES_DEFAULT_MAXIMUM)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # no control group of this version: no limit
        return ""
