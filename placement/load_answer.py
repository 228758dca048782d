"""What a node says of a load."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoadAnswer:
    """GET /loads/{digest} on an agent: how much of a checkpoint's weights is in memory by now."""

    loaded_bytes: int
