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
        title="Time to first token, milliseconds (medians; stages of the median run)",
        caption="fresh process: plain transformers, from its spawn; speedup is against it",
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
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
            *_stages(samples[start]),
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


def _stages(samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """The stages of the median sample, and what no stage accounts for, which is the last."""
    ordered = sorted(samples, key=lambda sample: float(sample["ttft_ms"]))
    middle = ordered[(len(ordered) - 1) // 2]
    stages = middle["stages_ms"]
    other = middle["ttft_ms"] - sum(stages.values())
    return [
        *(f"{stages[stage]:.0f}" if stage in stages else "-" for stage in STAGES),
        f"{other:.0f}",
    ]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
