"""Medians over the rounds, what is compared within rounds, and the tables.

Rates are per second of processor time of the process that clients talk to: the same as requests
per second where it has its core to itself.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

# One mapping a round: "open stoker", "closed litellm", "first direct", "hold stoker", …
Round = Mapping[str, Mapping[str, float]]
Rounds = list[Round]


def figures(rounds: Rounds, peers: tuple[str, ...]) -> dict[str, float | None]:
    return {
        "added_p50_ms": _over(rounds, "open", "p50_ms"),
        "added_p99_ms": _over(rounds, "open", "p99_ms"),
        "requests_per_second_core": _median(rounds, _value("closed stoker")),
        "chat_requests_per_second_core": _median(rounds, _value("closed stoker_chat")),
        "added_ttft_p50_ms": _over(rounds, "first", "p50_ms"),
        "vs_litellm": _median(
            rounds, lambda taken: _ratio(taken, "stoker_chat", [_rate(taken, "litellm")])
        ),
        "best_peer_ratio": _median(
            rounds, lambda taken: _ratio(taken, "stoker", [_rate(taken, peer) for peer in peers])
        ),
        "idle_streams_2000_mb": _median(rounds, _value("hold stoker", "held_mb")),
        "idle_gateway_mb": _median(rounds, _value("hold stoker", "before_mb")),
        "failed_requests": float(
            sum(sample.get("failed", 0) for taken in rounds for sample in taken.values())
        ),
    }


def show(rounds: Rounds, errors: Mapping[str, str], console: Console) -> None:
    rates = Table(title="Requests per second of one core", box=None, pad_edge=False)
    for heading in (
        "subject",
        "median",
        "min-max",
        "as measured",
        "share of the core",
        "stoker / it",
    ):
        rates.add_column(heading, justify="left" if heading == "subject" else "right")
    for key in _keys(rounds, "closed "):
        name = key.removeprefix("closed ")
        found = [taken[key] for taken in rounds if key in taken]
        values = [sample["per_core"] for sample in found]
        measured = statistics.median(sample["requests_per_second"] for sample in found)
        cores = statistics.median(sample["core"] for sample in found)
        same = "stoker_chat" if name in ("litellm", "stoker_chat") else "stoker"
        ratio = _median(
            rounds, lambda taken, name=name, same=same: _ratio(taken, same, [_rate(taken, name)])
        )
        rates.add_row(
            name,
            f"{statistics.median(values):.0f}",
            f"{min(values):.0f}-{max(values):.0f}",
            f"{measured:.0f}",
            f"{cores:.0%}",
            "-" if ratio is None else f"{ratio:.2f}",
        )
    console.print(rates)
    times = Table(title="Milliseconds, medians over the rounds", box=None, pad_edge=False)
    for heading in ("what", "p50", "p99"):
        times.add_column(heading, justify="left" if heading == "what" else "right")
    for prefix in ("open ", "first "):
        for key in _keys(rounds, prefix):
            found = [taken[key] for taken in rounds if key in taken]
            middle = [statistics.median(f[name] for f in found) for name in ("p50_ms", "p99_ms")]
            times.add_row(key, *(f"{ms:.2f}" for ms in middle))
    console.print(times)
    for name, error in errors.items():
        console.print(f"[yellow]{name}[/yellow] was not measured: {error}", highlight=False)


def _keys(rounds: Rounds, prefix: str) -> list[str]:
    return list(dict.fromkeys(k for taken in rounds for k in taken if k.startswith(prefix)))


def _rate(taken: Round, name: str) -> float | None:
    sample = taken.get(f"closed {name}")
    return None if sample is None else sample["per_core"]


def _ratio(taken: Round, ours: str, others: list[float | None]) -> float | None:
    """Our rate over the best of the others."""
    rate, known = _rate(taken, ours), [other for other in others if other]
    return rate / max(known) if rate is not None and known else None


def _over(rounds: Rounds, kind: str, name: str) -> float | None:
    """By how much Stoker's is more than that of the null server alone."""

    def one(taken: Round) -> float | None:
        ours, alone = taken.get(f"{kind} stoker"), taken.get(f"{kind} direct")
        return ours[name] - alone[name] if ours and alone else None

    return _median(rounds, one)


def _value(key: str, name: str = "per_core") -> Callable[[Round], float | None]:
    return lambda taken: taken[key][name] if key in taken else None


def _median(rounds: Rounds, one: Callable[[Round], Any]) -> float | None:
    known = [value for taken in rounds if (value := one(taken)) is not None]
    return round(statistics.median(known), 3) if known else None
