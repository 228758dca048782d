"""The ways in which an instance may give its place to another start. Pure.

Where the work of a busy one goes on is a choice of its own, on every node with room. So what moving
it takes at least is known for all instances at once, and worked out only for those that may win.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from stoker.placement.estimate import resume_seconds
from stoker.placement.fleet import Fleet, Placed
from stoker.placement.fleet_rows import Bools, Floats
from stoker.placement.forecast import Forecast
from stoker.placement.placing import Abilities, Placing
from stoker.placement.records import FunctionRecord
from stoker.placement.room import Option, Victim
from stoker.placement.survey import survey

# With more nodes that have room than this, any checkpoint may be on one of them.
ROOMY_MAXIMUM = 256
# A second of waiting of a higher priority counts as so many of the one that asks.
HIGHER_WEIGHT = 10.0
# What draining an instance counts that is in use: as long as its requests may go on.
DRAIN_LOSS_SECONDS = 30.0

Giving = Callable[[Placed], tuple[float, tuple[float, ...]] | None]


class Ways:
    """For one start of `function`. `predict` makes the forecast of another function's start.

    Who is `urgent` may take the place of a lower priority that is in use.

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
        *,
        urgent: bool = False,
    ) -> None:
        self._fleet = fleet
        self._function = function
        self._drains = urgent and placing.careful and abilities.drain
        self._now = now
        self._overlapped = placing.overlapped
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
        if self._careful:
            self._forgive_lower(loss)
        if self._preempts and self._careful:
            loss[rows.least_priority[:size] < self._function.priority] = 0.0
        elif self._preempts:
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

    def _forgive_lower(self, loss: Floats) -> None:
        """Idle instances of lower priorities cost nothing, and the others a drain at most."""
        rows, size, own = self._fleet.rows, self._fleet.rows.size, self._function.priority
        loss[rows.least_spare_priority[:size] < own] = 0.0
        if self._drains:
            held = rows.least_held_priority[:size] < own
            loss[held] = np.minimum(loss[held], DRAIN_LOSS_SECONDS)

    def of(self, row: int, start_seconds: Callable[[float], float] | None) -> list[Option]:
        """The ways of every instance on the node.

        Where any one of them is enough, `start_seconds` says how long the start takes with room in
        so many seconds, and what cannot be the best one may be left out.
        """
        here = self._fleet.on_row(row)
        found = [option for placed in here for option in self._still(placed)]
        movable = [placed for placed in here if self._may_move(placed)]
        if start_seconds is None:
            return found + [option for placed in movable if (option := self._move(placed))]
        best = min((start_seconds(o.victim.seconds) + o.loss_seconds for o in found), default=None)
        for placed in sorted(movable, key=lambda p: (self._least_move(p), p.instance_id)):
            least = start_seconds(self._least_move(placed)) + self._pause(placed)
            if best is not None and least > best:
                continue
            option = self._move(placed)
            if option is not None:
                found.append(option)
                cost = start_seconds(option.victim.seconds) + option.loss_seconds
                best = cost if best is None else min(best, cost)
        return found

    def _still(self, placed: Placed) -> list[Option]:
        """To be stopped, drained, waited for, or preempted where it is."""
        work, assignment, found = placed.work, placed.assignment, []
        priority = self._priority(placed)
        if work is None:
            given = self._giving(placed)
            if given is not None:
                loss = given[0] * self._weight(priority)
                order = (priority, *given[1])
                return [Option(Victim(assignment, "stop", 0.0), loss, order, placed)]
            if self._drains and priority < self._function.priority:
                loss = DRAIN_LOSS_SECONDS
                return [Option(Victim(assignment, "drain", 0.0), loss, (priority, loss), placed)]
            return []
        if assignment.function == self._function.key:
            return []  # It goes on with whoever waits.
        left = max(0.0, work.ends_at - self._now)
        if self._waits and left < math.inf:
            found.append(Option(Victim(assignment, "wait", left), 0.0, (priority, left), placed))
        if self._preempts and (not self._careful or priority < self._function.priority):
            loss = left if self._careful and left < math.inf else 0.0
            found.append(Option(Victim(assignment, "preempt", 0.0), loss, (priority, loss), placed))
        return found

    def _priority(self, placed: Placed) -> float:
        """0 of everybody where the policy does not care."""
        owner = self._fleet.functions.get(placed.assignment.function)
        if not self._careful:
            return 0.0
        return owner.priority if owner else -math.inf

    def _weight(self, priority: float) -> float:
        """What a second of its waiting counts beside one of who asks."""
        own = self._function.priority if self._careful else 0.0
        if priority == own:
            return 1.0
        return 0.0 if priority < own else HIGHER_WEIGHT

    def _may_move(self, placed: Placed) -> bool:
        return (
            self._migrates
            and placed.work is not None
            and placed.work.resumable
            and placed.assignment.function in self._fleet.functions
            and placed.assignment.function != self._function.key
        )

    def _move(self, placed: Placed) -> Option | None:
        """Its work goes on where a start of its function is soonest."""
        target = self._target(placed)
        if target is None or placed.work is None:
            return None
        row, start = target
        seconds, loss = start + resume_seconds(placed.work.tokens), self._pause(placed)
        victim = Victim(placed.assignment, "migrate", seconds, self._fleet.rows.ids[row])
        return Option(victim, loss, (self._priority(placed), loss), placed)

    def _pause(self, placed: Placed) -> float:
        """What moving it costs whoever reads its stream, as far as the policy cares."""
        work = placed.work
        return float(resume_seconds(work.tokens)) if work and self._careful else 0.0

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
        return self._fleet.movables.by_row(self._fleet.rows.size, self._all_moves())

    def _least_move(self, placed: Placed) -> float:
        return self._fleet.movables.of(placed.instance_id, self._all_moves())

    def _all_moves(self) -> Floats:
        if self._moves is None:
            self._moves = self._fleet.movables.least_seconds(*self._elsewhere())
        return self._moves

    def _elsewhere(self) -> tuple[float, float, set[str] | None]:
        """What a start where there is room takes at least: (seconds of its process, bytes per
        second for weights that no such node has, digests that one has or may have).
        """
        rows, size = self._fleet.rows, self._fleet.rows.size
        roomy = rows.present[:size] & (rows.slots_used[:size] < rows.slots[:size])
        roomy &= rows.spares[:size] > 0
        if self._fleet.movables.all_on_devices:
            roomy &= rows.devices_free[:size] > 0
        found = np.flatnonzero(roomy)
        if not len(found):
            return math.inf, 1.0, set()
        # By q + n / b, processes take no time.
        process = self._fleet.learnt.least_process_seconds(found) if self._overlapped else 0.0
        if len(found) > ROOMY_MAXIMUM:
            return process, 1.0, None
        fastest = np.maximum(rows.store_bandwidth[found], rows.peer_bandwidth[found])
        bandwidth = float((fastest / np.minimum(1.0, rows.contention[found])).max())
        return process, bandwidth, self._fleet.holdings.digests(found.tolist())
