"""The table of the demo, its raw results, and its last line."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from rich import box
from rich.console import Console
from rich.table import Table

STAGES = ("queue", "place", "fetch", "load", "init", "prefill")
STARTS = {
    "s3": "S3",
    "ssd": "SSD",
    "dram": "host memory",
    "warm": "warm",
    "fresh_process": "fresh process",
}
Samples = Mapping[str, Sequence[Mapping[str, Any]]]


def medians(samples: Samples) -> dict[str, float]:
    """Median milliseconds to the first token by start."""
    return {
        start: round(statistics.median(s["ttft_ms"] for s in samples[start]), 1) for start in STARTS
    }


def show(samples: Samples, console: Console) -> None:
    middle = medians(samples)
    table = Table(
        title="Time to first token, milliseconds (medians)",
        caption="fresh process: plain transformers, from its spawn; speedup is against it",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("from", no_wrap=True)
    for heading in ("TTFT", "min-max", "speedup", *STAGES, "other"):
        table.add_column(heading, justify="right")
    for start, name in STARTS.items():
        times = [sample["ttft_ms"] for sample in samples[start]]
        table.add_row(
            name,
            f"{middle[start]:.0f}",
            f"{min(times):.0f}-{max(times):.0f}",
            f"{middle['fresh_process'] / middle[start]:.1f}x",
            *(_stage(samples[start], stage) for stage in STAGES),
            f"{statistics.median(map(_other, samples[start])):.0f}",
        )
    console.print(table)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch", "transformers", "uvicorn")
        },
    }


def keep(samples: Samples, described: Mapping[str, Any], path: Path) -> None:
    """Write the raw results; the file appears whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({**described, "samples": samples}, indent=2) + "\n")
    temporary.replace(path)


def last_line(samples: Samples) -> str:
    return json.dumps({"benchmark": "demo", "ttft_ms": medians(samples)})


def _stage(samples: Sequence[Mapping[str, Any]], stage: str) -> str:
    found = [sample["stages_ms"][stage] for sample in samples if stage in sample["stages_ms"]]
    return f"{statistics.median(found):.0f}" if found else "-"


def _other(sample: Mapping[str, Any]) -> float:
    """What no stage accounts for: the connections, the client, and what was not measured."""
    return float(sample["ttft_ms"] - sum(sample["stages_ms"].values()))


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
