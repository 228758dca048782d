"""Pictures of simulations: start-up latencies, where starts came from, what was moved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stoker.placement.errors import BadSpec
from stoker.placement.simulate_metrics import Outcome

TIERS = ("warm", "busy", "dram", "ssd", "peer", "remote", "timeout")
LATENCY_SECONDS_LEAST = 0.001

Outcomes = Mapping[str, Sequence[Outcome]]


def draw(outcomes: Outcomes, folder: Path) -> list[Path]:
    """One PNG for each picture; BadSpec where matplotlib is not installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise BadSpec(
            "Expected matplotlib for --plots, found none.", "Install stoker[plots]."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, picture in (
        ("start-up-latency", _latencies),
        ("tiers", _tiers),
        ("migrations", _moves),
    ):
        figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
        picture(axes, outcomes)
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=120)
        pyplot.close(figure)
        made.append(path)
    return made


def _latencies(axes: Any, outcomes: Outcomes) -> None:
    for policy, runs in outcomes.items():
        seconds = sorted(s for run in runs for s in run.start_seconds)
        values = [max(LATENCY_SECONDS_LEAST, s) for s in seconds]
        shares = [(rank + 1) / len(values) for rank in range(len(values))]
        axes.plot(values, shares, label=policy, drawstyle="steps-post")
    axes.set(
        xscale="log", xlabel="start-up latency (s)", ylabel="share of requests", ylim=(0.0, 1.0)
    )
    axes.grid(alpha=0.3)
    axes.legend()


def _tiers(axes: Any, outcomes: Outcomes) -> None:
    bottoms = [0.0] * len(outcomes)
    counts = [sum((run.tiers for run in runs), Counter()) for runs in outcomes.values()]
    for tier in TIERS:
        shares = [count[tier] / max(1, count.total()) for count in counts]
        if any(shares):
            axes.bar(list(outcomes), shares, bottom=bottoms, label=tier)
            bottoms = [bottom + share for bottom, share in zip(bottoms, shares, strict=True)]
    axes.set(ylabel="share of requests")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _moves(axes: Any, outcomes: Outcomes) -> None:
    places = range(len(outcomes))
    for offset, name in ((-0.2, "migrations"), (0.2, "preemptions")):
        means = [sum(getattr(run, name) for run in runs) / len(runs) for runs in outcomes.values()]
        axes.bar([place + offset for place in places], means, width=0.4, label=name)
    axes.set_xticks(list(places), list(outcomes))
    axes.set(ylabel="per run")
    axes.legend()
