"""The ways in which an instance may give its place to another start. Pure.

Where the work of a busy one goes on is a choice of its own, on every node with room. So what moving
it takes at least is known for all instances at once, and worked out only for those that may win.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from stoker.placement.estimate import CONTROL_SECONDS, resume_seconds
from stoker.placement.fleet import Fleet, Placed
from stoker.placement.fleet_rows import Bools, Floats
from stoker.placement.forecast import Forecast
from stoker.placement.placing import Abilities, Placing
from stoker.placement.records import FunctionRecord
from stoker.placement.room import Option, Victim
from stoker.placement.survey import survey

# With more nodes that have room than this, any checkpoint may be on one of them.
ROOMY_MAXIMUM = 256

Giving = Callable[[Placed], tuple[float, tuple[float, ...]] | None]


class Ways:
    """For one start of `function`. `predict` makes the forecast of another function's start.

    `giving` says of an idle instance what stopping it will probably cost, in seconds of waiting,
    and its place among those that cost the same; None if it must stay.
    """

    def __init__(
        self,
        fleet: Fleet,
        function: FunctionRecord,
        now: float,
        placing: Placing,
        abilities: Abilities,
        giving: Giving,
        predict: Callable[[FunctionRecord], Forecast],
    ) -> None:
        self._fleet = fleet
        self._function = function
        self._now = now
        self._waits = placing.waits
        self._migrates = placing.migrates and abilities.migrate
        self._preempts = placing.preempts and abilities.preempt
        self._careful = placing.careful
        self._giving = giving
        self._predict = predict
        self._targets: dict[str, tuple[Bools, Floats]] = {}
        self._moves: Floats | None = None

    def least_costs(self, predicted: Forecast) -> Floats:
        """For each row, no more than what the cheapest way there costs, the start included."""
        fleet, rows, size = self._fleet, self._fleet.rows, self._fleet.rows.size
        loss = rows.least_loss[:size].copy()
        for placed in fleet.of_function(self._function.key):
            if placed.assignment.generation != self._function.generation:
                # It gives its place to its successor, also while it is busy.
                loss[placed.row] = 0.0
        if self._preempts:
            loss[rows.busy[:size] > 0] = 0.0
        least = predicted.seconds + loss
        if self._waits:
            frees_in = np.maximum(0.0, rows.frees_at[:size] - self._now)
            least = np.minimum(least, predicted.after(frees_in))
        if self._migrates:
            moves = self._least_moves()
            pause = resume_seconds(rows.least_tokens[:size]) if self._careful else 0.0
            least = np.minimum(least, predicted.after(moves) + pause)
        return np.asarray(least)

    def of(self, row: int, *, one: bool) -> list[Option]:
        """The ways of every instance on the node; with `one`, those that are enough to find the
        best single one.
        """
        found, movable = [], []
        for placed in self._fleet.on_row(row):
            found += self._still(placed)
            if self._may_move(placed):
                movable.append((self._least_move(placed), placed.instance_id, placed))
        soonest = math.inf
        for least, _, placed in sorted(movable, key=lambda item: item[:2]):
            if one and least > soonest:
                break
            option = self._move(placed)
            if option is not None:
                found.append(option)
                soonest = min(soonest, option.victim.seconds)
        return found

    def _still(self, placed: Placed) -> list[Option]:
        """To be stopped, waited for, or preempted where it is."""
        work, assignment, found = placed.work, placed.assignment, []
        if work is None:
            given = self._giving(placed)
            if given is None:
                return []
            return [Option(Victim(assignment, "stop", 0.0), given[0], given[1], placed)]
        if assignment.function == self._function.key:
            return []  # It goes on with whoever waits.
        left = max(0.0, work.ends_at - self._now)
        if self._waits and left < math.inf:
            found.append(Option(Victim(assignment, "wait", left), 0.0, (left,), placed))
        if self._preempts and self._may_preempt(placed):
            loss = left if self._careful and left < math.inf else 0.0
            found.append(Option(Victim(assignment, "preempt", 0.0), loss, (loss,), placed))
        return found

    def _may_preempt(self, placed: Placed) -> bool:
        owner = self._fleet.functions.get(placed.assignment.function)
        return not self._careful or owner is None or owner.priority < self._function.priority

    def _may_move(self, placed: Placed) -> bool:
        return (
            self._migrates
            and placed.work is not None
            and placed.work.resumable
            and placed.assignment.function != self._function.key
        )

    def _move(self, placed: Placed) -> Option | None:
        """Its work goes on where a start of its function is soonest."""
        target = self._target(placed)
        if target is None or placed.work is None:
            return None
        row, start = target
        pause = resume_seconds(placed.work.tokens)
        victim = Victim(placed.assignment, "migrate", start + pause, self._fleet.rows.ids[row])
        loss = pause if self._careful else 0.0
        return Option(victim, loss, (loss,), placed)

    def _target(self, placed: Placed) -> tuple[int, float] | None:
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
        found = np.flatnonzero(others)
        if not len(found):
            return None
        best = found[seconds[found] == seconds[found].min()]
        row = int(best[self._fleet.rows.rank[best].argmin()])
        return row, float(seconds[row])

    def _least_moves(self) -> Floats:
        """For each row, no more than what the soonest of its instances needs to go on elsewhere."""
        fleet, size = self._fleet, self._fleet.rows.size
        if self._moves is None:
            self._moves = fleet.movables.least_seconds(*self._elsewhere())
        return fleet.movables.by_row(size, self._moves)

    def _least_move(self, placed: Placed) -> float:
        if self._moves is None:
            self._moves = self._fleet.movables.least_seconds(*self._elsewhere())
        return self._fleet.movables.of(placed.instance_id, self._moves)

    def _elsewhere(self) -> tuple[float, float, set[str] | None]:
        """What a start where there is room takes at least: (seconds, bytes per second for weights
        that no such node has, digests that one has or may have).
        """
        rows, size = self._fleet.rows, self._fleet.rows.size
        roomy = rows.present[:size] & (rows.slots_used[:size] < rows.slots[:size])
        roomy &= rows.spares[:size] > 0
        roomy &= (rows.devices[:size] == 0) | (rows.devices_free[:size] > 0)
        found = np.flatnonzero(roomy)
        if not len(found):
            return math.inf, 1.0, set()
        if len(found) > ROOMY_MAXIMUM:
            return CONTROL_SECONDS, 1.0, None
        fastest = np.maximum(rows.store_bandwidth[found], rows.peer_bandwidth[found])
        bandwidth = float((fastest / np.minimum(1.0, rows.contention[found])).max())
        near = self._fleet.holdings.digests(found.tolist())
        return CONTROL_SECONDS, bandwidth, near
