"""Which instances of a function may be sent to, and which one is next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stoker.placement.records import Assignment
from stoker.placement.view import Snapshot


@dataclass(frozen=True, slots=True)
class Target:
    """An instance that may be sent to; `serving` is False while it still starts."""

    instance_id: str
    address: str
    generation: int
    serving: bool


def targets(
    snapshot: Snapshot, function_key: str, assigned: Iterable[Assignment]
) -> dict[str, Target]:
    """Every instance that may be sent to: what placement assigned and no agent says is ending."""
    function = snapshot.functions.get(function_key)
    oldest = function.generation_minimum if function else 1
    found: dict[str, Target] = {}
    for assignment in (*snapshot.assignments_of(function_key), *assigned):
        instance = snapshot.instances.get(assignment.instance_id)
        alive = instance is None or instance.state in ("starting", "serving")
        if alive and assignment.generation >= oldest:
            found[assignment.instance_id] = Target(
                assignment.instance_id,
                assignment.address,
                assignment.generation,
                instance is not None and instance.state == "serving",
            )
    return found


def choose(
    candidates: Iterable[Target], in_flight: Mapping[str, int], concurrency: int
) -> Target | None:
    """A target with a free slot: serving before starting, new before old, then least in flight."""
    free = (t for t in candidates if in_flight.get(t.instance_id, 0) < concurrency)
    return min(
        free,
        key=lambda t: (not t.serving, -t.generation, in_flight.get(t.instance_id, 0)),
        default=None,
    )
