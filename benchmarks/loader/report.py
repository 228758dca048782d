"""Medians, ratios within rounds, and the figures of the last line."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
from cases import FIO
from rich.console import Console
from rich.table import Table

PACKAGES = (
    *("torch", "safetensors", "fastsafetensors", "runai-model-streamer"),
    *("runai-model-streamer-s3", "tensorizer"),
)
# One mapping of condition to key to sample for each round.
Rounds = list[dict[str, dict[str, Mapping[str, Any]]]]


def seconds(rounds: Rounds, condition: str, key: str, what: str = "seconds") -> list[float | None]:
    """One number a round; None where that loader has none."""
    samples = [taken.get(condition, {}).get(key) for taken in rounds]
    return [float(sample[what]) if sample else None for sample in samples]


def ratio(rounds: Rounds, condition: str, above: str | Iterable[str], below: str) -> float | None:
    """Median over the rounds of a peer's seconds over ours; of several peers the fastest."""
    return _rounded(_ratios(rounds, condition, above, below))


def lowest(rounds: Rounds, condition: str, above: str | Iterable[str], below: str) -> float | None:
    """The ratio in the worst of the rounds."""
    return _rounded([min(_ratios(rounds, condition, above, below), default=None)])


def _ratios(rounds: Rounds, condition: str, above: str | Iterable[str], below: str) -> list[float]:
    peers = [above] if isinstance(above, str) else list(above)
    values = []
    for taken in rounds:
        samples = taken.get(condition, {})
        found = [float(samples[peer]["seconds"]) for peer in peers if peer in samples]
        if found and below in samples:
            values.append(min(found) / float(samples[below]["seconds"]))
    return values


def first_layer_over_wire(rounds: Rounds, bytes_per_second: float) -> float | None:
    """Median seconds to the first layer over what the wire takes for the bytes up to its end."""
    samples = [taken.get("s3_throttled", {}).get("stoker_s3") for taken in rounds]
    return _rounded(
        sample["first_layer_seconds"] / (sample["first_layer_bytes"] / bytes_per_second)
        for sample in samples
        if sample
    )


def figures(
    rounds: Rounds, file_bytes: int, wire_bytes_per_second: float
) -> dict[str, float | None]:
    huge_peers = {
        key
        for taken in rounds
        for key in taken.get("cold", {})
        if key.endswith("@huge") or key == "runai"  # whose buffers are numpy's, huge by themselves
    }
    attach = seconds(rounds, "dram", "stoker_attach", "load_seconds")
    touched = seconds(rounds, "dram", "stoker_attach")
    throttled = seconds(rounds, "s3_throttled", "stoker_s3")
    cpu = seconds(rounds, "cold", "stoker_pool", "cpu_seconds")
    return {
        "cold_ssd_share_of_device": ratio(rounds, "cold", FIO, "stoker_pool"),
        # 128 MiB of buffers: the one measure whose destination does not fit into a cache either.
        "cold_ssd_share_of_device_past_caches": ratio(
            rounds, "cold", "fio_io_uring_32", "stoker_pool"
        ),
        "cold_ssd_share_of_device_lowest": lowest(rounds, "cold", FIO, "stoker_pool"),
        "cold_ssd_small_pages_share_of_device": ratio(
            rounds, "cold", FIO, "stoker_pool_small_pages"
        ),
        "cold_ssd_vs_runai": ratio(rounds, "cold", "runai", "stoker_pool"),
        "cold_ssd_vs_safetensors": ratio(rounds, "cold", "safetensors", "stoker_pool"),
        "cold_ssd_vs_best_huge_page_peer": ratio(rounds, "cold", huge_peers, "stoker_pool"),
        "cold_ssd_cpu_seconds": _rounded(cpu),
        "cold_load_file_share_of_device": ratio(rounds, "cold", FIO, "stoker"),
        "cold_load_file_vs_runai": ratio(rounds, "cold", "runai", "stoker"),
        "cold_load_file_vs_safetensors": ratio(rounds, "cold", "safetensors", "stoker"),
        "cold_load_file_vs_best_huge_page_peer": ratio(rounds, "cold", huge_peers, "stoker"),
        "idle_vs_runai": ratio(rounds, "idle", "runai", "stoker_pool"),
        "idle_vs_safetensors": ratio(rounds, "idle", "safetensors", "stoker_pool"),
        "idle_load_file_vs_runai": ratio(rounds, "idle", "runai", "stoker"),
        "warm_vs_safetensors": ratio(rounds, "warm", "safetensors", "stoker"),
        "warm_copy_vs_runai": ratio(rounds, "warm", "runai", "stoker_copy"),
        "dram_attach_ms": _rounded(attach, 1000),
        "dram_attach_and_touch_ms": _rounded(touched, 1000),
        "digest_cost": ratio(rounds, "ablation", "ablation_digests", "ablation_threads"),
        "s3_vs_runai": ratio(rounds, "s3", "runai", "stoker_s3"),
        "s3_vs_download": ratio(rounds, "s3", "download_safetensors", "stoker_s3"),
        "s3_throttled_over_wire": _rounded(throttled, wire_bytes_per_second / file_bytes),
        "s3_throttled_first_layer_over_wire": first_layer_over_wire(rounds, wire_bytes_per_second),
        "s3_throttled_vs_runai": ratio(rounds, "s3_throttled", "runai", "stoker_s3"),
    }


def show(rounds: Rounds, file_bytes: int, errors: Mapping[str, str], console: Console) -> None:
    table = Table(title="Seconds until every page was touched", box=None, pad_edge=False)
    table.add_column("condition")
    table.add_column("loader", no_wrap=True)
    for heading in ("median", "min-max", "GiB/s", "CPU s", "load call"):
        table.add_column(heading, justify="right")
    for condition in dict.fromkeys(name for taken in rounds for name in taken):
        keys = {key for taken in rounds for key in taken.get(condition, {})}
        medians = {key: statistics.median(_known(seconds(rounds, condition, key))) for key in keys}
        for key in sorted(medians, key=medians.__getitem__):
            times = _known(seconds(rounds, condition, key))
            table.add_row(
                condition,
                key,
                f"{medians[key]:.3f}",
                f"{min(times):.3f}-{max(times):.3f}",
                f"{file_bytes / medians[key] / (1 << 30):.2f}",
                *(
                    "-" if key in FIO else _middle(rounds, condition, key, what)
                    for what in ("cpu_seconds", "load_seconds")
                ),
            )
    console.print(table)
    for name, error in errors.items():
        console.print(f"[yellow]{name}[/yellow] did not load: {error}", highlight=False)


def machine(folder: Path) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "file_system": _file_system(folder),
        "transparent_huge_pages": {
            name: _text(Path("/sys/kernel/mm/transparent_hugepage") / name)
            for name in ("enabled", "shmem_enabled")
        },
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def keep(result: Mapping[str, Any], path: Path) -> None:
    """Write the raw results; the file appears whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=2) + "\n")
    temporary.replace(path)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _rounded(values: Iterable[float | None], factor: float = 1.0) -> float | None:
    known = _known(values)
    return round(statistics.median(known) * factor, 3) if known else None


def _middle(rounds: Rounds, condition: str, key: str, what: str) -> str:
    return f"{statistics.median(_known(seconds(rounds, condition, key, what))):.2f}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _text(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(folder: Path) -> str:
    found = [
        part
        for part in psutil.disk_partitions(all=True)
        if folder.resolve().is_relative_to(part.mountpoint)
    ]
    return max(found, key=lambda part: len(part.mountpoint)).fstype if found else ""
