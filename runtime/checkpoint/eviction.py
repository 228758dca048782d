"""Which resident goes first when a tier is full: greedy-dual."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class _Standing:
    frequency: int
    priority: float


class GreedyDual:
    """Greedy-dual size frequency: priority = clock + reload cost x frequency / size.

    The clock rises to the priority of each victim, so that what is no longer used ages. No I/O
    and no wall clock; the caller's lock guards it.
    """

    def __init__(self) -> None:
        self._clock = 0.0
        self._standings: dict[str, _Standing] = {}

    def touch(self, key: str, reload_seconds: float, byte_count: int) -> None:
        """`key` was used; bringing it back would take `reload_seconds`."""
        before = self._standings.get(key)
        frequency = before.frequency + 1 if before else 1
        priority = self._clock + reload_seconds * frequency / max(byte_count, 1)
        self._standings.pop(key, None)  # to the end: ties go to the longest untouched
        self._standings[key] = _Standing(frequency, priority)

    def victim(self, candidates: Iterable[str]) -> str | None:
        """The candidate to evict, None when there is none. Ties go to the longest untouched."""
        order = {key: n for n, key in enumerate(self._standings)}
        best = min(
            candidates,
            key=lambda key: (self._priority(key), order.get(key, -1)),
            default=None,
        )
        if best is not None:
            self._clock = max(self._clock, self._priority(best))
        return best

    def forget(self, key: str) -> None:
        self._standings.pop(key, None)

    def _priority(self, key: str) -> float:
        standing = self._standings.get(key)
        return standing.priority if standing else 0.0
