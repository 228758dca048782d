"""What a check of `stoker doctor` says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stoker.placement.errors import StokerError

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """`found` is one sentence; `remedy` is another, and empty where nothing needs to be done."""

    name: str
    state: State
    found: str
    remedy: str = ""


def refused(name: str, error: StokerError, state: State = "fail") -> Check:
    """The check that `error` decided, in the error's own sentences."""
    return Check(name, state, error.cause, error.remedy)


def size_in_words(count: int) -> str:
    """1610612736 as `1.5 GiB`."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= 1024**power:
            return f"{count / 1024**power:.1f} {unit}"
    return f"{count} B"
