"""Checks of the hardware: memory, cores, processor features, GPUs."""

from __future__ import annotations

import os
from pathlib import Path

from stoker.placement.errors import DeviceFailed
from stoker.runtime.doctor_check import Check, size_in_words
from stoker.runtime.gpus import read_driver
from stoker.runtime.limits import CGROUP_ROOT, core_quota, memory_bytes

MEMORY = "memory"
CORES = "cores"
DIGEST = "checkpoint digest"
GPUS = "GPUs"
CORES_WANTED = 2
_MEMINFO = Path("/proc/meminfo")
_CPUINFO = Path("/proc/cpuinfo")


def check_memory(
    pool_bytes: int, meminfo: Path = _MEMINFO, cgroup_root: Path = CGROUP_ROOT
) -> Check:
    """Whether a pool of checkpoints of that size fits."""
    memory = memory_bytes(cgroup_root)
    available = min(memory, _available_bytes(meminfo))
    found = (
        f"Of {size_in_words(memory)} that may be used, {size_in_words(available)} are available; "
        f"the pool of checkpoints takes {size_in_words(pool_bytes)}."
    )
    if pool_bytes >= memory:
        remedy = f"Set --dram-bytes or STOKER_DRAM_BYTES to less, e.g. {memory // 4}."
        return Check(MEMORY, "fail", found, remedy)
    if pool_bytes > available:
        remedy = "Stop what holds the memory, or choose less with --dram-bytes."
        return Check(MEMORY, "warn", found, remedy)
    return Check(MEMORY, "ok", found)


def _available_bytes(meminfo: Path) -> int:
    for line in meminfo.read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_cores(cgroup_root: Path = CGROUP_ROOT, cores: int | None = None) -> Check:
    """Cores are what a model on the CPU computes with."""
    usable = len(os.sched_getaffinity(0)) if cores is None else cores
    quota = core_quota(cgroup_root)
    limited = quota is not None and quota < usable
    found = f"{usable} cores may be used"
    found += f", limited to {quota:g} by the control group." if limited else "."
    if limited and quota is not None and quota < 1:
        return Check(CORES, "warn", found, "Raise the CPU limit of the container to at least 1.")
    if min(usable, quota or usable) < CORES_WANTED:
        remedy = "Give Stoker at least 2 cores: a load and a generation share one otherwise."
        return Check(CORES, "warn", found, remedy)
    return Check(CORES, "ok", found)


def check_digest_instructions(
    cpuinfo: Path = _CPUINFO, architecture: str = os.uname().machine
) -> Check:
    """The digest of a chunk is made of CRC32C, by an instruction on x86-64."""
    wanted = {"x86_64": "sse4_2"}.get(architecture)
    if wanted is None:
        found = f"On {architecture} digests are computed from tables."
        return Check(DIGEST, "ok", found)
    flags: list[str] = []
    for line in cpuinfo.read_text().splitlines():
        name, _, rest = line.partition(":")
        if name.strip() == "flags":
            flags = rest.split()
            break
    if wanted in flags:
        return Check(DIGEST, "ok", "The processor has SSE4.2, which computes digests.")
    return Check(
        DIGEST,
        "warn",
        "The processor shows no SSE4.2, so digests are computed from tables, slower.",
        "Let the virtual machine show its host's processor (e.g. `-cpu host`).",
    )


def check_gpus() -> Check:
    """What the NVIDIA driver says; no driver is no fault."""
    try:
        driver = read_driver()
    except DeviceFailed as error:
        return Check(GPUS, "warn", f"{error.cause} Nothing runs on a GPU here.", error.remedy)
    if not driver.version:
        return Check(GPUS, "ok", "No NVIDIA driver was found: CPU only.")
    if not driver.gpus:
        return Check(GPUS, "ok", f"The NVIDIA driver {driver.version} has no GPU: CPU only.")
    devices = ", ".join(
        f"{gpu.name} ({gpu.kind}) with {size_in_words(gpu.memory_bytes)}" for gpu in driver.gpus
    )
    return Check(
        GPUS, "ok", f"{devices}; driver {driver.version}; code functions may ask for them."
    )
