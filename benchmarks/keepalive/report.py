"""The tables and the figures of the last line."""

from __future__ import annotations

from collections.abc import Mapping

from policies import FIXED, LRU, LRU_ON_LADDER, STOKER, STOKER_PRICED
from rich.console import Console
from rich.table import Table

from stoker.placement.ladder import Rung

GIB = 1 << 30
Rows = Mapping[str, Mapping[str, float]]


def figures(rows: Rows) -> dict[str, float | None]:
    """How much less of it, in per cent, Stoker has than the others."""
    result: dict[str, float | None] = {}
    for peer, name in ((FIXED, "fixed"), (LRU, "lru"), (LRU_ON_LADDER, "lru_on_ladder")):
        result[f"cold_starts_less_than_{name}_percent"] = _less(rows, STOKER, peer, "cold_starts")
        result[f"start_p99_less_than_{name}_percent"] = _less(
            rows, STOKER, peer, "start_seconds_p99"
        )
    for what, name in (("cold_starts", "cold_starts"), ("start_seconds_p99", "start_p99")):
        result[f"{name}_less_than_fixed_at_its_memory_percent"] = _less(
            rows, STOKER_PRICED, FIXED, what
        )
    return result


def _less(rows: Rows, ours: str, peer: str, what: str) -> float | None:
    if not rows[peer][what]:
        return None
    return round(100.0 * (1.0 - rows[ours][what] / rows[peer][what]), 1)


def show(trace: Mapping[str, float], tables: Mapping[str, Rows]) -> None:
    console = Console(width=190)
    console.print("  ".join(f"{name} {value:.4g}" for name, value in trace.items()))
    for share, rows in tables.items():
        console.print(_table(float(share), rows))


def _table(share: float, rows: Rows) -> Table:
    gib = rows["capacity"]["bytes"] / GIB
    table = Table(
        title=f"{gib:.0f} GiB, {share:.0%} of what all functions need at once: starts by rung, "
        "cold starts, seconds to start over all requests, memory held on average"
    )
    table.add_column("policy", no_wrap=True)
    rungs = [rung.name.lower() for rung in reversed(Rung)]
    headings = (
        *rungs,
        *("cold", "cold %", "p50 s", "p95 s", "p99 s", "mean s"),
        *("GiB held", "res./busy", "GiB made"),
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        if name == "capacity":
            continue
        table.add_row(
            name,
            *(f"{row.get(f'from_{rung}', 0):.0f}" for rung in rungs),
            f"{row['cold_starts']:.0f}",
            f"{100 * row['cold_share']:.2f}",
            *(f"{row[f'start_seconds_{what}']:.2f}" for what in ("p50", "p95", "p99")),
            f"{row['start_seconds_mean']:.3f}",
            f"{row['mean_bytes'] / GIB:.1f}",
            f"{row['resident_over_busy']:.1f}",
            f"{row['made_bytes'] / GIB:.0f}",
        )
    return table
