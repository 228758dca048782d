"""Which layers lie in a memory of a given size. Pure: no clock, `now` is given and never goes back.

Invariants: held bytes never exceed the capacity; a layer in use is never given up, nor one on
which another rests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from stoker.placement.ladder import Ladder, Layer, Rung

Priority = Callable[[Sequence[Layer]], float]


@dataclass(slots=True)
class Held:
    """One layer in memory. `above` rest on it, and it rests on `below` (keys of held layers)."""

    layer: Layer
    ready_at: float
    users: int = 0
    deadline: float = math.inf
    below: tuple[str, ...] = ()
    above: set[str] = field(default_factory=set)


class Residency:
    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self.peak_bytes = 0
        self.byte_seconds = 0.0
        self.serving_seconds = 0.0
        self._held: dict[str, Held] = {}
        self._now: float | None = None
        self._serving = 0

    def __getitem__(self, key: str) -> Held:
        return self._held[key]

    def get(self, key: str) -> Held | None:
        return self._held.get(key)

    def held(self, keys: Iterable[str]) -> set[str]:
        return {key for key in keys if key in self._held}

    def pass_to(self, now: float) -> None:
        """Account for what was held until `now`."""
        if self._now is not None:
            self.byte_seconds += self.used_bytes * (now - self._now)
            self.serving_seconds += self._serving * (now - self._now)
        self._now = now

    def add(self, ladder: Ladder, layer: Layer, ready_at: float, deadline: float) -> None:
        """Hold a layer for which there is room, and on top of what it rests on."""
        assert layer.key not in self._held
        assert self.used_bytes + layer.byte_count <= self.capacity_bytes
        self.used_bytes += layer.byte_count
        self._serving += layer.rung is Rung.SERVING
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        below = tuple(other.key for other in ladder.layers if layer.rests_on(other))
        self._held[layer.key] = Held(layer, ready_at, deadline=deadline, below=below)
        for other in below:
            self._held[other].above.add(layer.key)

    def expire(self, key: str, now: float) -> None:
        """Give the layer up if its time is over and nothing needs it, and then what is below."""
        held = self._held.get(key)
        if held is None or held.users or held.above or held.deadline > now:
            return
        del self._held[key]
        self.used_bytes -= held.layer.byte_count
        self._serving -= held.layer.rung is Rung.SERVING
        for other in held.below:
            self._held[other].above.discard(key)
            self.expire(other, now)

    def make_room(
        self,
        byte_count: int,
        priority: Priority,
        now: float,
        worth: float = math.inf,
    ) -> list[Layer] | None:
        """Give up idle layers, the least first, until so many bytes are free.

        None of a priority of `worth` or more goes. Returns what went; None, and nothing goes, if
        that is not enough.
        """
        lacking = byte_count - (self.capacity_bytes - self.used_bytes)
        if lacking <= 0:
            return []
        idle = [held for held in self._held.values() if not held.users]
        if sum(held.layer.byte_count for held in idle) < lacking:
            return None
        taken = self._least(lacking, idle, priority, worth)
        if taken is None:
            return None
        for layer in taken:
            self._held[layer.key].deadline = -math.inf
        for layer in taken:
            self.expire(layer.key, now)
        return taken

    def _least(
        self,
        lacking: int,
        idle: list[Held],
        priority: Priority,
        worth: float,
    ) -> list[Layer] | None:
        groups = []
        for held in idle:
            group = self._with_all_above(held)
            if any(other.users for other in group):
                continue
            layers = [other.layer for other in group]
            value = priority(layers)
            if value < worth:
                groups.append((value, held.layer.key, layers))
        taken: dict[str, Layer] = {}
        freed = 0
        for _, _, layers in sorted(groups, key=lambda group: group[:2]):
            for layer in layers:
                if layer.key not in taken:
                    taken[layer.key] = layer
                    freed += layer.byte_count
            if freed >= lacking:
                return self._fewest(taken, freed - lacking)
        return None

    def _fewest(self, taken: dict[str, Layer], excess: int) -> list[Layer]:
        """Without those that need not go after all; the first taken are the least worth."""
        for layer in reversed(tuple(taken.values())):
            stays_below = not any(layer.key in self._held[key].above for key in taken)
            if stays_below and layer.byte_count <= excess:
                excess -= layer.byte_count
                del taken[layer.key]
        return list(taken.values())

    def _with_all_above(self, held: Held) -> list[Held]:
        """The layer and all that rests on it, the uppermost last."""
        found = {held.layer.key: held}
        waiting = [held]
        while waiting:
            for key in sorted(waiting.pop().above):
                if key not in found:
                    found[key] = self._held[key]
                    waiting.append(found[key])
        return list(found.values())
