"""What a run prints: the tables, and one start in its stages."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from figures import Rounds, median_sample, stream_pairs
from rich.console import Console
from rich.table import Table
from starts import STREAMS, SUBJECTS

from stoker.gateway.cli.server_timing import STAGES, waterfall


def show_starts(rounds: Rounds, console: Console) -> None:
    table = Table(title="Milliseconds to the first token or embedding", box=None, pad_edge=False)
    table.add_column("start", no_wrap=True)
    for heading in ("median", "min-max", "samples", *STAGES, "other"):
        table.add_column(heading, justify="right")
    keys = {key for taken in rounds for key, found in taken.items() if isinstance(found, list)}
    medians = {}
    for key in keys:
        times = [float(s["ttft_ms"]) for taken in rounds for s in taken.get(key, [])]
        medians[key] = (statistics.median(times), times)
    for key in sorted(keys, key=lambda key: (not key.startswith("chat"), medians[key][0])):
        middle, times = medians[key]
        sample = median_sample(rounds, key) or {}
        table.add_row(
            key,
            f"{middle:.0f}",
            f"{min(times):.0f}-{max(times):.0f}",
            str(len(times)),
            *_stages(sample.get("stages_ms", {}), float(sample.get("ttft_ms", 0))),
        )
    console.print(table)


def show_streams(rounds: Rounds, console: Console) -> None:
    table = Table(title="Warm streams (medians)", box=None, pad_edge=False)
    columns = ("tokens_per_second", "ttft_ms_p50", "ttft_ms_p95", "tpot_ms_p50", "tpot_ms_p95")
    for heading in ("streams", "by", *columns):
        table.add_column(heading, justify="right")
    for count in STREAMS:
        for subject in SUBJECTS:
            found = [pair[subject] for taken in rounds for pair in stream_pairs(taken, count)]
            if found:
                middle = [statistics.median(each[column] for each in found) for column in columns]
                table.add_row(str(count), subject, *(f"{number:.1f}" for number in middle))
    console.print(table)


def show_waterfall(rounds: Rounds, key: str, console: Console) -> None:
    """The stages of the median start of that key, as the gateway's answer told them."""
    sample = median_sample(rounds, key)
    if sample is None:
        return
    stages = dict(sample["stages_ms"])
    stages["client"] = max(0.0, float(sample["ttft_ms"]) - sum(stages.values()))
    table = Table(title=f"One median start: {key}", box=None, pad_edge=False)
    for heading in ("stage", "ms", ""):
        table.add_column(heading, no_wrap=True)
    for row in waterfall(stages):
        table.add_row(*row)
    console.print(table)


def show_errors(errors: Mapping[str, str], console: Console) -> None:
    for name, error in errors.items():
        console.print(f"[yellow]{name}[/yellow] was not measured: {error}", highlight=False)


def _stages(stages: Mapping[str, float], total_ms: float) -> list[str]:
    if not stages:
        return ["-"] * (len(STAGES) + 1)
    shown = [f"{stages[stage]:.0f}" if stage in stages else "-" for stage in STAGES]
    return [*shown, f"{total_ms - sum(stages.values()):.0f}"]
