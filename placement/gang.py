"""Places for every stage of a pipeline over several nodes: all of them, or none. Pure.

Each of n stages takes a slot, its devices and an equal part of the weights. Stages on one node
share its links, so each more of them takes longer there. The pipeline serves when its last stage is
ready, so the places are those with which that is soonest. One zone that has them all, hardly later,
comes first: what is computed hops from stage to stage, and with one stage the pipeline is lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from stoker.placement.choice import NEAR_SECONDS, NEAR_SHARE
from stoker.placement.errors import BadRequest
from stoker.placement.estimate import pool_bytes
from stoker.placement.fleet import Fleet
from stoker.placement.fleet_rows import Ints
from stoker.placement.forecast import Forecast, forecast
from stoker.placement.records import Assignment, FunctionRecord
from stoker.placement.survey import Survey, survey

STAGES_MAXIMUM = 64
# Layers are not all of one size: a stage may have so much more than an equal part.
EVENNESS = 0.9


@dataclass(frozen=True, slots=True)
class GangStage:
    """The place of one stage; see Assignment."""

    node_id: str
    address: str
    devices: tuple[int, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True)
class Gang:
    """The order for every stage of a pipeline over several nodes, in one entry of the store: it is
    there whole or not at all. Stage k of n holds the k-th part of the layers, from the first on.
    """

    gang_id: str
    function: str
    generation: int
    epoch: int
    created_at: float
    stages: tuple[GangStage, ...]

    @property
    def path(self) -> str:
        return f"/gangs/{self.gang_id}"


@dataclass(frozen=True, slots=True)
class GangChoice:
    """`gang` is None where there were fewer `places` than stages; `survey` says what each node
    lacks for a stage. `seconds` is until its first token, infinite without a gang.
    """

    gang: Gang | None
    seconds: float
    places: int
    survey: Survey


def choose_gang(
    fleet: Fleet,
    function: FunctionRecord,
    stage_count: int,
    now: float,
    *,
    gang_id: str,
    epoch: int,
    peers: bool = True,
) -> GangChoice:
    """Decide for a pipeline of `stage_count` stages; changes nothing.

    `function.devices` are those of one stage. BadRequest for a count that no pipeline has.
    """
    if not 2 <= stage_count <= STAGES_MAXIMUM:
        raise BadRequest(
            f"Expected a pipeline of 2 to {STAGES_MAXIMUM} stages, found {stage_count}.",
            "Start a single instance, or split the model less.",
        )
    part = _part_of(function, stage_count)
    seen = survey(fleet, part)
    room = _room(fleet, part, seen, stage_count)
    forecasts = [
        forecast(fleet, function, now, peers=peers, share=_share(count, stage_count))
        for count in range(1, int(room.max(initial=0)) + 1)
    ]
    found = _soonest(fleet, forecasts, room, stage_count)
    if found is None:
        return GangChoice(None, math.inf, int(room.sum()), seen)
    counts, seconds = found
    gang = Gang(
        gang_id=gang_id,
        function=function.key,
        generation=function.generation,
        epoch=epoch,
        created_at=now,
        stages=tuple(_stages(fleet, forecasts, seen, counts)),
    )
    return GangChoice(gang, seconds, int(room.sum()), seen)


def assignments_of(gang: Gang) -> tuple[Assignment, ...]:
    """What each stage takes of its node, as an assignment of its own would."""
    return tuple(
        Assignment(
            f"{gang.gang_id}.{number}",
            gang.function,
            gang.generation,
            stage.node_id,
            stage.address,
            gang.epoch,
            gang.created_at,
            stage.devices,
            stage.source,
        )
        for number, stage in enumerate(gang.stages)
    )


def _share(count: int, stage_count: int) -> float:
    """What so many stages have of the weights, at most."""
    return min(1.0, count / (stage_count * EVENNESS))


def _part_of(function: FunctionRecord, stage_count: int) -> FunctionRecord:
    """The function as one stage sees it."""
    ref = function.checkpoint
    if ref is None:
        return function
    part_bytes = math.ceil(ref.weight_bytes * _share(1, stage_count))
    return replace(function, checkpoint=replace(ref, weight_bytes=part_bytes))


def _room(fleet: Fleet, part: FunctionRecord, seen: Survey, stage_count: int) -> Ints:
    """How many stages each node can take."""
    rows, size = fleet.rows, fleet.rows.size
    room = np.minimum(rows.slots[:size] - rows.slots_used[:size], rows.spares[:size])
    by_devices = rows.devices_free[:size] // np.maximum(1, seen.devices)
    room = np.where(seen.devices > 0, np.minimum(room, by_devices), room)
    if part.checkpoint is not None:
        left = rows.pool_bytes[:size] - rows.pinned_bytes[:size]
        by_pool = left // pool_bytes(part.checkpoint)
        by_pool[fleet.holdings.pinning(part.checkpoint.digest)] = stage_count
        room = np.minimum(room, by_pool)
    return np.where(seen.free, np.clip(room, 0, stage_count), 0)


def _soonest(
    fleet: Fleet, forecasts: list[Forecast], room: Ints, stage_count: int
) -> tuple[Ints, float] | None:
    """How many stages go to each row, and when the last one is ready; None: they do not all fit.

    With one stage more a node is no sooner ready, so the n least times of (row, number of stages
    there) are those of n stages, and their latest is the least that there can be.
    """
    if room.sum() < stage_count:
        return None
    counts, rows = np.nonzero(np.array([room > count for count in range(len(forecasts))]))
    seconds = np.array([predicted.seconds for predicted in forecasts])[counts, rows]
    order = np.lexsort((fleet.rows.rank[rows], counts, seconds))
    zones = fleet.rows.zone[rows[order]]
    best = order[:stage_count]
    latest = float(seconds[best[-1]])
    limit = latest * (1.0 + NEAR_SHARE) + NEAR_SECONDS
    together = []
    for zone in np.unique(zones).tolist():
        inside = order[zones == zone][:stage_count]
        if len(inside) == stage_count and seconds[inside[-1]] <= limit:
            name = fleet.rows.zones.names[zone]
            together.append((float(seconds[inside[-1]]), name, inside))
    if together:
        latest, _, best = min(together, key=lambda zone: zone[:2])
    return np.bincount(rows[best], minlength=fleet.rows.size), latest


def _stages(fleet: Fleet, forecasts: list[Forecast], seen: Survey, counts: Ints) -> list[GangStage]:
    """The stages of one node follow each other, and nodes their ids."""
    stages = []
    for row in sorted(np.flatnonzero(counts).tolist(), key=lambda row: int(fleet.rows.rank[row])):
        count, node_id = int(counts[row]), fleet.rows.ids[row]
        predicted, need = forecasts[count - 1], int(seen.devices[row])
        peer = int(predicted.peer[row]) if predicted.source(row) == "peer" else None
        source = "" if peer is None else fleet.rows.ids[peer]
        free = fleet.free_devices(node_id)
        addresses = fleet.free_addresses(node_id)
        for number in range(count):
            devices = free[number * need : (number + 1) * need]
            stages.append(GangStage(node_id, next(addresses), devices, source))
    return stages
