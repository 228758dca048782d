"""Snapshots of a cluster for the planner, and its decisions on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from stoker.placement.fleet import Fleet
from stoker.placement.plan import Plan, plan
from stoker.placement.records import (
    Assignment,
    CheckpointRef,
    FunctionRecord,
    InstanceRecord,
    InstanceState,
    NodeRecord,
    ResidentRecord,
    Scaling,
)
from stoker.placement.scale import Demand
from stoker.placement.view import Snapshot

NOW = 1000.0
GB = 1_000_000_000
MODEL = CheckpointRef("s3://b/m", "a" * 64, GB, packed=True)
OTHER = CheckpointRef("s3://b/o", "b" * 64, GB, packed=True)
QUEUED = Demand(queued=1, last_needed=(NOW,))
IDLE = Demand(last_needed=(NOW - 10.0,))
Running = list[tuple[Assignment, InstanceState | None]]
OLDER = Demand(last_needed=(NOW - 50.0,))


def function(
    name: str = "f", checkpoint: CheckpointRef | None = None, **fields: Any
) -> FunctionRecord:
    scaling = Scaling(
        minimum=fields.pop("minimum", 0), maximum=fields.pop("maximum", 4), concurrency=1
    )
    return FunctionRecord(name, "ns", "img", checkpoint=checkpoint, scaling=scaling, **fields)


def node(node_id: str = "n", sockets: int = 3, **fields: Any) -> NodeRecord:
    addresses = tuple(f"{node_id}:{port}" for port in range(sockets))
    record = NodeRecord(node_id, f"{node_id}:80", 4, 4 * GB, 8 * GB, 8, addresses)
    known = {"ssd_bandwidth": 1.0 * GB, "remote_bandwidth": 0.1 * GB, "zygote_ready": True}
    return dataclasses.replace(record, **{**known, **fields})


def assignment(
    instance_id: str, owner: FunctionRecord, node_id: str = "n", **fields: Any
) -> Assignment:
    made = Assignment(
        instance_id,
        owner.key,
        owner.generation,
        node_id,
        f"{node_id}:old-{instance_id}",
        1,
        NOW - 5,
    )
    return dataclasses.replace(made, **fields)


def instance(made: Assignment, state: InstanceState = "serving") -> InstanceRecord:
    common = (made.instance_id, made.function, made.generation, made.node_id, made.address)
    return InstanceRecord(*common, state, 1, 0.0)


def snapshot(
    functions: list[FunctionRecord],
    nodes: list[NodeRecord],
    running: Running | None = None,
    residents: list[ResidentRecord] | None = None,
) -> Snapshot:
    running = running or []
    return Snapshot(
        functions={f.key: f for f in functions},
        nodes={n.node_id: n for n in nodes},
        assignments={a.instance_id: a for a, _ in running},
        instances={a.instance_id: instance(a, state) for a, state in running if state},
        residents={(r.node_id, r.digest): r for r in residents or []},
    )


def decide(
    seen: Snapshot,
    demand: dict[str, Demand] | None = None,
    resting: Iterable[str] = (),
    **fields: Any,
) -> Plan:
    fleet = Fleet(seen.records(), NOW)
    for address in resting:
        fleet.hold_address(address)
    return plan(fleet, demand or {}, NOW, **{"epoch": 7, **fields})


def stopped(made: Plan) -> dict[str, str]:
    return {stop.assignment.instance_id: stop.reason for stop in made.stops}
