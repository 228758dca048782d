"""Where one more instance of a function goes. Pure: (fleet, ask, now) -> Decision.

    1. forecast: the seconds of a start on every node, as columns
    2. refuse:   which nodes have room, which could make some, and what the others lack
    3. order:    the policy's keys, as columns; where room must be made, a lower bound
    4. pick:     the least; if its cost is only a bound, work it out, put it back and pick again

So every node counts, whatever their number, and only the few that may win are worked out one by
one. What is picked is what comparing every node would find.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from stoker.placement.estimate import (
    RESUME_SECONDS,
    RESUME_SECONDS_PER_TOKEN,
    Stages,
    resume_seconds,
)
from stoker.placement.fleet import Fleet, Placed
from stoker.placement.fleet_rows import Bools, Floats, Ints
from stoker.placement.forecast import Forecast, forecast
from stoker.placement.link_queues import Link
from stoker.placement.placing import PRESENT_ABILITIES, STOKER, Abilities, Placing
from stoker.placement.records import FunctionRecord
from stoker.placement.room import Lack, Option, Room, Victim, make_room
from stoker.placement.survey import Survey, survey

# Nodes that are at most so much later than the soonest count as equally soon for spreading.
NEAR_SHARE = 0.1
NEAR_SECONDS = 0.05

Kind = Literal["warm", "dram", "ssd", "peer", "remote", "wait", "migrate", "preempt"]


@dataclass(frozen=True, slots=True)
class Ask:
    """One instance is called for.

    `waited` says that somebody waits for it: only then does it take another's place. `avoid` are
    nodes that come last. `existing` is an instance that is there, and in how many seconds it would
    take the request. `number` makes each draw of a random policy another. Since `since` somebody
    waits, which counts against the function's promise.
    """

    function: FunctionRecord
    waited: bool = True
    avoid: frozenset[str] = frozenset()
    existing: tuple[str, float] | None = None
    number: int = 0
    since: float | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to serve the request, `seconds` until its first token.

    `instance_id` is set where an instance that exists is waited for; then nothing is started.
    Victims go first, `devices` are the numbers that are free then, `peer` sends the weights.
    `deadline` is when the load is promised to be done.
    """

    kind: Kind
    node_id: str
    seconds: float
    stages: Stages
    victims: tuple[Victim, ...] = ()
    device_count: int = 0
    peer: str = ""
    instance_id: str = ""
    deadline: float = math.inf


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided for one instance, and what every node was worth; None: no node can."""

    function: str
    placing: str
    decided_at: float
    chosen: Candidate | None
    survey: Survey


Giving = Callable[[Placed], tuple[float, tuple[float, ...]] | None]


def nothing_gives(_placed: Placed) -> None:
    """No idle instance may be stopped."""


def choose(
    fleet: Fleet,
    ask: Ask,
    now: float,
    *,
    placing: Placing = STOKER,
    abilities: Abilities = PRESENT_ABILITIES,
    giving: Giving = nothing_gives,
) -> Decision:
    """Decide for one instance; changes nothing.

    `giving` says of an idle instance what stopping it will probably cost, in seconds of waiting,
    and its place among those that cost the same; None if it must stay.
    """
    return _Choice(fleet, ask, now, placing, abilities, giving).decide()


class _Choice:
    def __init__(
        self,
        fleet: Fleet,
        ask: Ask,
        now: float,
        placing: Placing,
        abilities: Abilities,
        giving: Giving,
    ) -> None:
        self._fleet = fleet
        self._ask = ask
        self._now = now
        self._placing = placing
        self._abilities = abilities
        self._giving = giving
        self._forecast = self._predict(ask.function)
        self._survey = survey(fleet, ask.function)
        self._targets: dict[str, tuple[Bools, Floats]] = {}

    def decide(self) -> Decision:
        fleet, ask, predicted, seen = self._fleet, self._ask, self._forecast, self._survey
        free = seen.free
        cost = predicted.seconds.copy()
        possible = free | self._may_make_room(cost)
        keys = [*self._keys(possible, free), cost, ~free]
        keys += [fleet.rows.slots_used[: len(cost)], fleet.rows.rank[: len(cost)]]
        rooms: dict[int, Room] = {}
        chosen: Candidate | None = None
        while (row := _least(possible, keys)) is not None:
            if free[row] or row in rooms:
                chosen = self._candidate(row, rooms.get(row))
                break
            room = self._room(row)
            if room is None:
                possible[row] = False
                continue
            rooms[row] = room
            cost[row] = predicted.after(room.seconds, row) + room.loss_seconds
        seconds = np.where(possible, cost, predicted.seconds)
        existing = self._existing(chosen, math.inf if row is None else float(cost[row]))
        return Decision(
            ask.function.key,
            self._placing.name,
            self._now,
            existing or chosen,
            replace(seen, seconds=seconds),
        )

    def _predict(self, function: FunctionRecord) -> Forecast:
        peers = self._placing.careful and self._abilities.peers
        overlapped = self._placing.overlapped
        return forecast(self._fleet, function, self._now, overlapped=overlapped, peers=peers)

    def _keys(self, possible: Bools, free: Bools) -> list[Bools | Ints | Floats]:
        """What outranks the cost, first things first."""
        fleet, size = self._fleet, self._fleet.rows.size
        rows = fleet.rows
        avoided = np.zeros(size, np.bool_)
        for node_id in self._ask.avoid:
            if (row := rows.number(node_id)) is not None:
                avoided[row] = True
        match self._placing.order:
            case "random":
                return [avoided, ~free, _drawn(rows.rank[:size], self._ask.number)]
            case "room":
                drawn = _drawn(rows.rank[:size], self._ask.number)
                return [avoided, ~free, -rows.devices_free[:size], rows.slots_used[:size], drawn]
            case "tier":
                return [avoided, self._forecast.tier]
        if not self._placing.careful:
            return [avoided]
        return [avoided, self._broken(), self._crowded(possible)]

    def _broken(self) -> Bools:
        """Where one more load would break a promise made before."""
        predicted, size, queues = self._forecast, self._fleet.rows.size, self._fleet.rows.queues
        broken = (predicted.ssd > 0.0) & queues.closed(Link.SSD, size, self._now)
        broken |= (predicted.net > 0.0) & queues.closed(Link.NET, size, self._now)
        broken |= (predicted.device > 0.0) & queues.closed(Link.DEVICE, size, self._now)
        from_peer = predicted.peer >= 0
        if from_peer.any():
            closed = queues.closed(Link.OUT, size, self._now)
            broken |= from_peer & (predicted.net > 0.0) & closed[predicted.peer]
        return broken

    def _crowded(self, possible: Bools) -> Ints:
        """How many instances of the function fail together with one more on the node.

        Where somebody waits, it counts only among nodes that are about as soon as the soonest.
        """
        rows, size = self._fleet.rows, self._fleet.rows.size
        crowd = np.zeros(size, np.int64)
        others = self._fleet.of_function(self._ask.function.key)
        if not others or rows.zones.count < 2:
            return crowd
        per_zone = np.bincount([int(rows.zone[p.row]) for p in others], minlength=rows.zones.count)
        crowd = per_zone[rows.zone[:size]]
        if not self._ask.waited or not possible.any():
            return crowd
        seconds = self._forecast.seconds
        near = float(seconds[possible].min()) * (1.0 + NEAR_SHARE) + NEAR_SECONDS
        return np.where(seconds <= near, crowd, crowd.max() + 1)

    def _may_make_room(self, cost: Floats) -> Bools:
        """The rows that may make room, with the least that it can cost put into `cost`."""
        fleet, function, placing = self._fleet, self._ask.function, self._placing
        rows, size = fleet.rows, fleet.rows.size
        blocked = self._survey.able & ~self._survey.free & (rows.spares[:size] > 0)
        if not self._ask.waited or not blocked.any():
            return np.zeros(size, np.bool_)
        soonest = np.where(rows.idle[:size] > 0, 0.0, math.inf)
        for placed in fleet.of_function(function.key):
            if placed.assignment.generation != function.generation:
                # It gives its place to its successor, also while it is busy.
                soonest[placed.row] = 0.0
        frees_in = np.maximum(0.0, rows.frees_at[:size] - self._now)
        busy = np.isfinite(rows.frees_at[:size])
        if placing.waits:
            soonest = np.minimum(soonest, frees_in)
        if placing.migrates and self._abilities.migrate:
            moved = RESUME_SECONDS + RESUME_SECONDS_PER_TOKEN * rows.least_tokens[:size]
            soonest = np.minimum(soonest, moved)
        if placing.preempts and self._abilities.preempt:
            soonest = np.where(busy, 0.0, soonest)
        may = np.asarray(blocked & np.isfinite(soonest))
        cost[may] = self._forecast.after(np.where(may, soonest, 0.0))[may]
        return may

    def _room(self, row: int) -> Room | None:
        fleet, rows = self._fleet, self._fleet.rows
        lack = Lack(
            max(0, int(rows.slots_used[row]) + 1 - int(rows.slots[row])),
            max(0, int(self._survey.devices[row]) - int(rows.devices_free[row])),
            self._ask.function.checkpoint,
        )
        options = [option for placed in fleet.on_row(row) for option in self._options(placed)]
        return make_room(fleet, row, lack, options, serial=not self._placing.overlapped)

    def _options(self, placed: Placed) -> list[Option]:
        """The ways in which this instance may go."""
        work, assignment = placed.work, placed.assignment
        if work is None:
            given = self._giving(placed)
            if given is None:
                return []
            return [Option(Victim(assignment, "stop", 0.0), given[0], given[1], placed)]
        placing, can, found = self._placing, self._abilities, []
        left = max(0.0, work.ends_at - self._now)
        if placing.waits and left < math.inf:
            found.append(Option(Victim(assignment, "wait", left), 0.0, (left,), placed))
        target = None
        if placing.migrates and can.migrate and work.resumable:
            target = self._target(placed)
        if target is not None:
            row, start = target
            pause = resume_seconds(work.tokens)
            victim = Victim(assignment, "migrate", start + pause, self._fleet.rows.ids[row])
            loss = pause if placing.careful else 0.0
            found.append(Option(victim, loss, (loss,), placed))
        if placing.preempts and can.preempt and self._may_preempt(placed):
            loss = left if placing.careful and left < math.inf else 0.0
            found.append(Option(Victim(assignment, "preempt", 0.0), loss, (loss,), placed))
        return found

    def _may_preempt(self, placed: Placed) -> bool:
        owner = self._fleet.functions.get(placed.assignment.function)
        if not self._placing.careful or owner is None:
            return True
        return owner.priority < self._ask.function.priority

    def _target(self, placed: Placed) -> tuple[int, float] | None:
        """Where the instance's work would go on soonest, and how long its start there takes."""
        function = self._fleet.functions.get(placed.assignment.function)
        if function is None:
            return None
        seen = self._targets.get(function.key)
        if seen is None:
            free = survey(self._fleet, function).free
            seconds = self._predict(function).seconds if free.any() else np.zeros(len(free))
            seen = self._targets[function.key] = free, seconds
        free, seconds = seen
        others = free.copy()
        others[placed.row] = False
        row = _least(others, [seconds, self._fleet.rows.rank[: len(free)]])
        return None if row is None else (row, float(seconds[row]))

    def _candidate(self, row: int, room: Room | None) -> Candidate:
        fleet, function, predicted = self._fleet, self._ask.function, self._forecast
        room = room or Room((), 0.0, 0.0)
        stages = predicted.stages(row, room.seconds)
        peer = int(predicted.peer[row])
        deadline = math.inf
        if function.slo_ttft_seconds is not None:
            since = self._now if self._ask.since is None else self._ask.since
            deadline = since + function.slo_ttft_seconds - predicted.prefill
        return Candidate(
            kind=_kind(stages, room),
            node_id=fleet.rows.ids[row],
            seconds=float(predicted.after(room.seconds, row)),
            stages=stages,
            victims=room.victims,
            device_count=int(self._survey.devices[row]),
            peer=fleet.rows.ids[peer] if stages.source == "peer" else "",
            deadline=deadline,
        )

    def _existing(self, chosen: Candidate | None, cost: float) -> Candidate | None:
        """The instance that is there, if it takes the request before a new one would."""
        if self._ask.existing is None:
            return None
        instance_id, wait_seconds = self._ask.existing
        if wait_seconds > 0.0 and not self._placing.careful:
            return None
        stages = Stages(room=wait_seconds, prefill=self._forecast.prefill)
        seconds = stages.control + stages.room + stages.prefill
        if chosen is not None and cost < seconds:
            return None
        node_id = self._fleet.assignments[instance_id].node_id
        kind: Kind = "wait" if wait_seconds > 0.0 else "warm"
        return Candidate(kind, node_id, seconds, stages, instance_id=instance_id)


def _kind(stages: Stages, room: Room) -> Kind:
    ways = {victim.how for victim in room.victims}
    for way in ("preempt", "migrate", "wait"):
        if way in ways:
            return way
    return stages.source


def _least(possible: Bools, keys: Sequence[Bools | Ints | Floats]) -> int | None:
    """The possible row that is least by the first key, among equals by the next, and so on."""
    found = np.flatnonzero(possible)
    for key in keys:
        if len(found) < 2:
            break
        values = key[found]
        found = found[values == values.min()]
    return int(found[0]) if len(found) else None


def _drawn(ranks: Ints, number: int) -> Ints:
    """A number for each rank that looks like chance and is the same for the same `number`."""
    mixed = (ranks + (number + 1) * 0x9E3779B9).astype(np.uint64)
    for multiplier in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(multiplier)
    return (mixed ^ (mixed >> np.uint64(31))).astype(np.int64)
