"""The rungs between nothing and a serving instance, and what each costs. Pure.

    absent -> imported -> skeleton -> device -> serving
    absent ----------- host --------> device

A start climbs both branches at the same time: the process (interpreter and imports, then the model
without weights) and the weights (host memory). What lies above needs all that lies below.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from enum import IntEnum


class Rung(IntEnum):
    ABSENT = 0
    IMPORTED = 1
    SKELETON = 2
    HOST = 3
    DEVICE = 4
    SERVING = 5


@dataclass(frozen=True, slots=True)
class Layer:
    """What one rung adds: `byte_count` of memory, `seconds` to make it once all below is there.

    Layers of the same `key` are one in memory, whoever uses them: one zygote for each environment,
    the weights of a base model once for all functions on it.
    """

    rung: Rung
    key: str
    byte_count: int
    seconds: float

    def rests_on(self, other: Layer) -> bool:
        """Whether, within one ladder, `other` must be there as long as this is."""
        return other.rung < self.rung and self.rung is not Rung.HOST


@dataclass(frozen=True, slots=True)
class Ladder:
    """The layers of one function from the lowest to `serving`; rungs that it lacks cost nothing."""

    function: str
    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        rungs = [layer.rung for layer in self.layers]
        assert rungs == sorted(set(rungs)), f"the rungs of {self.function} must ascend: {rungs}"
        assert rungs[-1:] == [Rung.SERVING], f"{self.function} must end in a serving instance"

    @property
    def byte_count(self) -> int:
        return sum(layer.byte_count for layer in self.layers)

    def up_to(self, rung: Rung) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.rung <= rung)

    def rung(self, held: Collection[str]) -> Rung:
        """The rung that a start begins at when the layers in `held` (keys) are there.

        A start at `host` may still have to make the skeleton, which takes milliseconds.
        """
        have = [layer.rung for layer in self.layers if layer.key in held]
        lacks_imports = any(
            layer.rung is Rung.IMPORTED and layer.key not in held for layer in self.layers
        )
        return Rung.ABSENT if lacks_imports else max(have, default=Rung.ABSENT)

    def start_seconds(self, held: Collection[str] = ()) -> float:
        """Seconds until the function serves, when the layers in `held` (keys) are there."""
        return climb_seconds((la.rung, la.seconds) for la in self.layers if la.key not in held)


def climb_seconds(steps: Iterable[tuple[Rung, float]]) -> float:
    """How long the missing steps take: process and weights side by side, the rest after both."""
    process = weights = rest = 0.0
    for rung, seconds in steps:
        if rung <= Rung.SKELETON:
            process += seconds
        elif rung is Rung.HOST:
            weights += seconds
        else:
            rest += seconds
    return max(process, weights) + rest


def unshared(ladder: Ladder) -> Ladder:
    """The same ladder when nothing is shared with other functions."""
    layers = tuple(replace(layer, key=f"{ladder.function}/{layer.key}") for layer in ladder.layers)
    return Ladder(ladder.function, layers)


def whole(ladder: Ladder) -> Ladder:
    """The function as one container: it is there with all its memory, or it is not."""
    one = Layer(Rung.SERVING, f"{ladder.function}/whole", ladder.byte_count, ladder.start_seconds())
    return Ladder(ladder.function, (one,))
