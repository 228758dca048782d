"""One simulation from a described cluster, and the summary of several that differ by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stoker.placement.errors import BadSpec
from stoker.placement.placing import PLACINGS
from stoker.placement.simulate import Simulation
from stoker.placement.simulate_files import Cluster
from stoker.placement.simulate_metrics import Outcome
from stoker.placement.simulate_parts import Function, Request
from stoker.placement.simulate_planner import FleetPlanner
from stoker.placement.simulate_workload import node_failures

# A simulation's requests, for its own functions and its seed.
Workload = Callable[[Sequence[Function], int], Sequence[Request]]


@dataclass(frozen=True, slots=True)
class Conditions:
    """`idle_seconds` of functions that state none; None: by the production's own policy.

    Nodes fail after `failure_seconds` on average, infinite for never, and are `down_seconds` away.
    The functions are there `deployed_seconds` before their requests begin to arrive.
    """

    idle_seconds: float | None = None
    timeout_seconds: float = math.inf
    failure_seconds: float = math.inf
    down_seconds: float = 300.0
    deployed_seconds: float = 0.0


def simulate(
    cluster: Cluster,
    workload: Workload,
    policy: str,
    seed: int,
    conditions: Conditions = Conditions(),
) -> Outcome:
    """What the policy makes of the workload; BadSpec for one that is not known."""
    placing = PLACINGS.get(policy)
    if placing is None:
        raise BadSpec(f"Expected one of {', '.join(PLACINGS)} as the policy, found {policy!r:.60}.")
    functions = cluster.made_functions(conditions.idle_seconds)
    requests = workload(functions, seed)
    for request in requests:
        request.arrive_later(conditions.deployed_seconds)
    end = requests[-1].arrived_at if requests else 0.0
    failures = node_failures(
        [node.node_id for node in cluster.nodes],
        mean_seconds=conditions.failure_seconds,
        down_seconds=conditions.down_seconds,
        end=end,
        seed=seed,
    )
    simulation = Simulation(
        cluster.world(),
        functions,
        FleetPlanner(placing, seed),
        failures=failures,
        timeout_seconds=conditions.timeout_seconds,
    )
    return simulation.run(requests)


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Of each figure the median over the seeds, and its least and greatest under `spread`."""
    rows: list[Mapping[str, Any]] = [outcome.figures() for outcome in outcomes]
    found: dict[str, Any] = {}
    spread: dict[str, list[float]] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        found[name] = statistics.median(values)
        spread[name] = [min(values), max(values)]
    return {**found, "seeds": len(rows), "spread": spread}
