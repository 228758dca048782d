"""A cluster as records, drawn by a seed: nodes of three sorts, models of published sizes."""

from __future__ import annotations

import random
from dataclasses import dataclass

from stoker.placement.records import (
    Assignment,
    CheckpointRef,
    FunctionRecord,
    InstanceRecord,
    NodeRecord,
    Record,
    ResidentRecord,
    Scaling,
)

GB = 10**9
NOW = 1_000_000.0
# Weight bytes of common checkpoints, most in 16 bits.
SIZES = (270_000_000, 1_200_000_000, 3 * GB, 6 * GB, 13 * GB, 16 * GB, 26 * GB)
ZONES = 8
COPIES = 4


@dataclass(frozen=True)
class Shape:
    """`places` is how many instances a node takes, the running ones included."""

    nodes: int
    models: int
    instances: int
    places: int
    seed: int = 1


def records_of(shape: Shape) -> list[Record]:
    """Every model lies on the SSD of some nodes and in the DRAM of half as many."""
    chance = random.Random(shape.seed)
    nodes = [_node(number, shape.places, chance) for number in range(shape.nodes)]
    functions = [_function(number, chance) for number in range(shape.models)]
    residents: list[Record] = []
    for function in functions:
        ref = function.checkpoint
        assert ref is not None
        for copy, holder in enumerate(chance.sample(nodes, min(COPIES, len(nodes)))):
            dram = ref.weight_bytes if copy % 2 == 0 else 0
            residents.append(ResidentRecord(holder.node_id, ref.digest, dram, ref.weight_bytes))
    running: list[Record] = []
    for number in range(shape.instances):
        # Spread evenly, so that every node has the same number of places left.
        node = nodes[number % len(nodes)]
        running += _instance(number, chance.choice(functions), node, chance)
    return [*functions, *nodes, *residents, *running]


def _node(number: int, places: int, chance: random.Random) -> NodeRecord:
    name = f"node-{number:05}"
    return NodeRecord(
        node_id=name,
        agent_address=f"10.0.0.1:{number}",
        cores=32,
        dram_bytes=512 * GB,
        ssd_bytes=2000 * GB,
        instances_maximum=places,
        spare_addresses=tuple(f"{name}:{port}" for port in range(4)),
        remote_bandwidth=chance.choice([0.6, 1.2]) * GB,
        peer_bandwidth=1.2 * GB,
        ssd_bandwidth=chance.choice([2.5, 5.0]) * GB,
        init_seconds=chance.uniform(0.2, 0.8),
        zygote_ready=True,
        zone=f"zone-{number % ZONES}",
    )


def _function(number: int, chance: random.Random) -> FunctionRecord:
    size = chance.choice(SIZES)
    ref = CheckpointRef(f"s3://models/{number}", f"{number:064x}", size, packed=True)
    scaling = Scaling(maximum=64, concurrency=1)
    return FunctionRecord(f"f{number}", "ns", "img", checkpoint=ref, scaling=scaling)


def _instance(
    number: int, function: FunctionRecord, node: NodeRecord, chance: random.Random
) -> tuple[Assignment, InstanceRecord]:
    place = (function.key, 1, node.node_id, f"{node.node_id}:used-{number}")
    made = Assignment(f"1-{number}", *place, 1, NOW - 100.0)
    # One in ten still loads.
    state = "starting" if chance.random() < 0.1 else "serving"
    return made, InstanceRecord(made.instance_id, *place, state, 1, NOW - 100.0)
