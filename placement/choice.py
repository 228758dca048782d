"""Where one more instance of a function goes. Pure: (fleet, ask, now) -> Decision.

    1. forecast: the seconds of a start on every node, as columns
    2. refuse:   which nodes have room, which could make some, and what the others lack
    3. order:    the policy's keys, as columns; where room must be made, a lower bound
    4. pick:     the least; if its cost is only a bound, work it out, put it back and pick again

So every node counts, whatever their number, and only the few that may win are worked out one by
one. What is picked is what comparing every node would find.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from stoker.placement.estimate import PREFILL_SECONDS, Stages
from stoker.placement.fleet import Fleet, Placed
from stoker.placement.fleet_rows import Bools, Floats, Ints
from stoker.placement.forecast import forecast
from stoker.placement.link_queues import Link
from stoker.placement.placing import PRESENT_ABILITIES, STOKER, Abilities, Placing
from stoker.placement.records import FunctionRecord
from stoker.placement.room import Lack, Room, Victim, make_room
from stoker.placement.survey import Survey, survey
from stoker.placement.ways import Giving, Ways

# Nodes that are at most so much later than the soonest count as equally soon for spreading.
NEAR_SHARE = 0.1
NEAR_SECONDS = 0.05

# More instances of one function in one zone than there can be.
_FAR = 1 << 30

Column = Bools | Ints | Floats
Kind = Literal[
    "warm", "parked", "dram", "ssd", "peer", "remote", "wait", "migrate", "preempt", "drain"
]


@dataclass(frozen=True, slots=True)
class Ask:
    """One instance is called for.

    `waited` says that somebody waits for it: only then does it take another's place. `avoid` are
    nodes that come last. `existing` is an instance that is there, and in how many seconds it would
    take the request. `number` makes each draw of a random policy another. Since `since` somebody
    waits, which counts against the function's promise. From an instance that serves to the first
    token it takes `prefill_seconds`. Nobody serves who is `urgent`: it may take the place of a
    lower priority that is in use.
    """

    function: FunctionRecord
    waited: bool = True
    avoid: frozenset[str] = frozenset()
    existing: tuple[str, float] | None = None
    number: int = 0
    since: float | None = None
    prefill_seconds: float = PREFILL_SECONDS
    urgent: bool = False


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
        # Not a method of ours: what refers to itself stays in memory until it is looked for.
        predict = functools.partial(
            forecast,
            fleet,
            now=now,
            overlapped=placing.overlapped,
            peers=placing.careful and abilities.peers,
        )
        self._forecast = predict(ask.function, prefill_seconds=ask.prefill_seconds)
        self._survey = survey(fleet, ask.function)
        self._ways = Ways(
            fleet, ask.function, now, placing, abilities, giving, predict, urgent=ask.urgent
        )

    def decide(self) -> Decision:
        fleet, ask, predicted, seen = self._fleet, self._ask, self._forecast, self._survey
        free = seen.free
        cost = predicted.seconds.copy()
        possible = free | self._may_make_room(cost)
        crowd, near = np.zeros(len(cost), np.int64), math.inf
        if self._placing.careful:
            crowd, near = self._spread(possible, cost)
        keys = [*self._keys(free), crowd, cost, ~free]
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
            if cost[row] > near:
                crowd[row] = _FAR
        seconds = np.where(possible, cost, predicted.seconds)
        existing = self._existing(chosen, math.inf if row is None else float(cost[row]))
        return Decision(
            ask.function.key,
            self._placing.name,
            self._now,
            existing or chosen,
            replace(seen, seconds=seconds),
        )

    def _keys(self, free: Bools) -> list[Column]:
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
        return [avoided, self._broken()]

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

    def _spread(self, possible: Bools, cost: Floats) -> tuple[Ints, float]:
        """How many instances of the function fail together with one more on each row; and up to
        which cost that counts: where somebody waits, among those about as soon as the soonest.
        """
        rows, size = self._fleet.rows, self._fleet.rows.size
        others = self._fleet.of_function(self._ask.function.key)
        zones = rows.zone[:size][possible]
        if not others or not len(zones) or zones.min() == zones.max():
            return np.zeros(size, np.int64), math.inf
        per_zone = np.bincount([int(rows.zone[p.row]) for p in others], minlength=rows.zones.count)
        crowd = per_zone[rows.zone[:size]]
        if not self._ask.waited:
            return crowd, math.inf
        near = float(cost[possible].min()) * (1.0 + NEAR_SHARE) + NEAR_SECONDS
        return np.where(cost <= near, crowd, _FAR), near

    def _may_make_room(self, cost: Floats) -> Bools:
        """The rows that may make room, with the least that it can cost put into `cost`."""
        rows, size = self._fleet.rows, self._fleet.rows.size
        blocked = self._survey.able & ~self._survey.free & (rows.spares[:size] > 0)
        if not self._ask.waited or not blocked.any():
            return np.zeros(size, np.bool_)
        least = self._ways.least_costs(self._forecast)
        may = np.asarray(blocked & np.isfinite(least))
        cost[may] = least[may]
        return may

    def _room(self, row: int) -> Room | None:
        fleet, rows, checkpoint = self._fleet, self._fleet.rows, self._ask.function.checkpoint
        lack = Lack(
            max(0, int(rows.slots_used[row]) + 1 - int(rows.slots[row])),
            max(0, int(self._survey.devices[row]) - int(rows.devices_free[row])),
            checkpoint,
        )

        def start_seconds(room_seconds: float) -> float:
            return float(self._forecast.after(room_seconds, row))

        # Who frees a slot is enough where nothing else lacks; then most need no close look.
        one = lack.slots == 1 and lack.devices == 0 and fleet.holdings.fits(row, checkpoint)
        options = self._ways.of(row, start_seconds if one else None)
        serial = not self._placing.overlapped
        return make_room(fleet, row, lack, options, start_seconds, serial=serial)

    def _candidate(self, row: int, room: Room | None) -> Candidate:
        fleet, predicted = self._fleet, self._forecast
        room = room or Room((), 0.0, 0.0)
        stages = predicted.stages(row, room.seconds)
        peer = int(predicted.peer[row])
        seconds = float(predicted.after(room.seconds, row))
        return Candidate(
            kind=_kind(stages, room, parked=row in predicted.parked),
            node_id=fleet.rows.ids[row],
            seconds=seconds,
            stages=stages,
            victims=room.victims,
            device_count=int(self._survey.devices[row]),
            peer=fleet.rows.ids[peer] if stages.source == "peer" else "",
            deadline=self._deadline(seconds),
        )

    def _deadline(self, seconds: float) -> float:
        """When the load must be done for the function's promise, counted from the arrival.

        What comes too late whatever the others do is not promised: it would keep them from the
        links for nothing.
        """
        promised = self._ask.function.slo_ttft_seconds
        if promised is None:
            return math.inf
        by = promised + (self._now if self._ask.since is None else self._ask.since)
        return by - self._forecast.prefill if self._now + seconds <= by else math.inf

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


def _kind(stages: Stages, room: Room, *, parked: bool) -> Kind:
    ways = {victim.how for victim in room.victims}
    for way in ("preempt", "drain", "migrate", "wait"):
        if way in ways:
            return way
    return "parked" if parked and stages.source == "dram" else stages.source


def _least(possible: Bools, keys: Sequence[Column]) -> int | None:
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
