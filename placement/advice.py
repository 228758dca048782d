"""What one's own traffic says of idle times, slots and pins. Pure: a few simulations, compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from stoker.placement.simulate_files import Cluster
from stoker.placement.simulate_metrics import Outcome
from stoker.placement.simulate_run import Conditions, Workload, simulate

IDLE_SECONDS: tuple[float | None, ...] = (None, 0.0, 60.0, 300.0, 900.0, 3600.0)
SLOT_SHARES = (0.25, 0.5, 1.0, 2.0)
PINS_MAXIMUM = 5
# A longer idle time is advised only where it saves this share of the waiting.
WORTH_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Row:
    """One choice: who waits how long for it, and how many hours instances run. Seconds."""

    choice: str
    start_seconds_mean: float
    start_seconds_p95: float
    start_seconds_p99: float
    cold_share: float
    instance_hours: float


@dataclass(frozen=True, slots=True)
class Pin:
    """What one instance that always runs would save of the function's waiting."""

    function: str
    requests: int
    waited_seconds: float
    saved_seconds: float


@dataclass(frozen=True, slots=True)
class Advice:
    idle_times: tuple[Row, ...]
    slots: tuple[Row, ...]
    pins: tuple[Pin, ...]
    sentences: tuple[str, ...]

    def tables(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """(title, rows) of each table that has rows."""
        named = (
            ("Idle time (stoker/idle-ttl)", self.idle_times),
            ("Instances per node", self.slots),
            ("Pins (com.openfaas.scale.min: 1)", self.pins),
        )
        return [(title, [asdict(row) for row in rows]) for title, rows in named if rows]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def advise(cluster: Cluster, workload: Workload, seed: int = 1) -> Advice:
    """Simulate the choices one at a time; the others stay as the cluster says."""
    idle_times, outcomes = [], {}
    for seconds in IDLE_SECONDS:
        outcome = simulate(cluster, workload, "stoker", seed, Conditions(idle_seconds=seconds))
        name = "learned" if seconds is None else f"{seconds:.0f}s"
        outcomes[name] = outcome
        idle_times.append(_row(name, outcome))
    slots = []
    for count in _slot_counts(cluster):
        outcome = simulate(_with_slots(cluster, count), workload, "stoker", seed)
        slots.append(_row(str(count), outcome))
    pins = _pins(cluster, workload, outcomes["learned"], seed)
    return Advice(
        tuple(idle_times), tuple(slots), pins, _sentences(idle_times, slots, pins, cluster)
    )


def _row(choice: str, outcome: Outcome) -> Row:
    figures = outcome.figures()
    return Row(
        choice,
        figures["start_seconds_mean"],
        figures["start_seconds_p95"],
        figures["start_seconds_p99"],
        1.0 - figures["warm_share"],
        figures["instance_hours"],
    )


def _slot_counts(cluster: Cluster) -> list[int]:
    present = max(node.instances_maximum for node in cluster.nodes)
    return sorted({max(1, round(share * present)) for share in SLOT_SHARES})


def _with_slots(cluster: Cluster, count: int) -> Cluster:
    nodes = tuple(
        replace(
            node,
            instances_maximum=count,
            spare_addresses=tuple(f"{node.node_id}:{port}" for port in range(2 * count + 4)),
        )
        for node in cluster.nodes
    )
    return replace(cluster, nodes=nodes)


def _pins(cluster: Cluster, workload: Workload, outcome: Outcome, seed: int) -> tuple[Pin, ...]:
    found = []
    longest = sorted(outcome.cold_seconds.items(), key=lambda item: (-item[1], item[0]))
    for key, waited in longest[:PINS_MAXIMUM]:
        pinned = simulate(cluster.with_minimum(key, 1), workload, "stoker", seed)
        found.append(
            Pin(
                key.rpartition(".")[0],
                outcome.functions[key],
                waited,
                waited - pinned.cold_seconds.get(key, 0.0),
            )
        )
    return tuple(sorted(found, key=lambda pin: -pin.saved_seconds))


def _sentences(
    idle_times: Sequence[Row], slots: Sequence[Row], pins: Sequence[Pin], cluster: Cluster
) -> tuple[str, ...]:
    best = min(idle_times, key=lambda row: row.start_seconds_mean)
    enough = 1.0 + WORTH_SHARE
    cheap = min(
        (r for r in idle_times if r.start_seconds_mean <= enough * best.start_seconds_mean),
        key=lambda row: row.instance_hours,
    )
    found = [f"Idle time: {cheap.choice}. The mean wait is {cheap.start_seconds_mean:.3g} s."]
    soonest = min(slots, key=lambda row: row.start_seconds_mean)
    fewest = next(
        row for row in slots if row.start_seconds_mean <= enough * soonest.start_seconds_mean
    )
    present = max(node.instances_maximum for node in cluster.nodes)
    found.append(
        f"Instances per node: {fewest.choice} are enough (there are {present})."
        if int(fewest.choice) <= present
        else f"Instances per node: {fewest.choice} would cut the wait to "
        f"{fewest.start_seconds_mean:.3g} s on average (there are {present})."
    )
    if pins and pins[0].saved_seconds > 0:
        found.append(
            f"Pin: {pins[0].function} would save {pins[0].saved_seconds:.3g} s of waiting in all."
        )
    return tuple(found)
