"""The production's planner, told of a simulation's cluster and asked on its behalf."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace

from stoker.placement.choice import Ask, Candidate, choose
from stoker.placement.fleet import Fleet, Placed, Work
from stoker.placement.placing import EVERY_ABILITY, Placing
from stoker.placement.plan import idle_loss
from stoker.placement.prefetch import Order, Prefetching
from stoker.placement.records import Assignment, Record
from stoker.placement.scale import Demand
from stoker.placement.simulate_parts import Function, Instance

# How long requests ran, of which the rest of one that runs is told.
DURATIONS_MAXIMUM = 64
DURATIONS_MINIMUM = 8
# Of ten that ran as long, one goes on for longer than who waits for it reckons with.
LATE_SHARE = 0.9
# What is expected to end within the one is looked at again after the other.
SOON_SECONDS = 5.0
EXPECTED_SECONDS = 0.25
# How many functions with idle instances are weighed anew with every question.
COUNTED_AGAIN = 16


# When it ends, the instance, the number of its note, and when it was noted.
_Expected = tuple[float, str, int, float]


class Durations:
    """The last durations of requests. What nothing is known of never ends."""

    __slots__ = ("_seconds",)

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=DURATIONS_MAXIMUM)

    def add(self, seconds: float) -> None:
        self._seconds.append(seconds)

    def __len__(self) -> int:
        return len(self._seconds)

    def left_after(self, seconds: float) -> float:
        """The mean rest of those that ran longer than this; as long again where none did."""
        longer = [known - seconds for known in self._seconds if known > seconds]
        if longer:
            return sum(longer) / len(longer)
        return seconds if self._seconds else math.inf

    def late_after(self, seconds: float) -> float:
        """The same, but what only one in ten of them exceeds."""
        longer = sorted([known - seconds for known in self._seconds if known > seconds])
        if longer:
            return longer[int(LATE_SHARE * len(longer))]
        return seconds if self._seconds else math.inf


class FleetPlanner:
    """Deterministic: a random policy draws from `seed` and the number of the question."""

    def __init__(self, placing: Placing, seed: int = 0) -> None:
        self.placing = placing
        self._calm = replace(placing, preempts=False)
        self._fleet = Fleet()
        self._number = 0
        self._questions = seed * 1_000_003
        self._idle_since: dict[str, float] = {}
        self._ends_at: dict[str, float] = {}
        self._demand_of: Callable[[str], Demand] = lambda _key: Demand()
        self._now = 0.0
        self._asking = ""
        self._idle_functions: dict[str, Function] = {}
        self._instances: dict[str, Instance] = {}
        # What the work of instances is expected to last until, the first to end first.
        self._expected: list[_Expected] = []
        self._noted: dict[str, int] = {}
        # Of each function, and of all for those of which too little is known.
        self._durations: dict[str, Durations] = {}
        self._all_durations = Durations()

    def ask_demand_of(self, demand_of: Callable[[str], Demand]) -> None:
        """Whom to ask for the demand of a function whose instance may have to go."""
        self._demand_of = demand_of

    def put(self, record: Record, now: float) -> None:
        self._fleet.put(record, now)

    def drop(self, record: Record, now: float) -> None:
        self._fleet.drop(record, now)

    def prefetches(
        self,
        prefetching: Prefetching,
        demand_of: Callable[[str], Demand],
        orders: Mapping[str, Order],
        now: float,
    ) -> dict[str, Order]:
        """The nodes' orders that change, of those that are looked at in one second."""
        found: dict[str, Order] = {}
        for _ in range(prefetching.pieces(self._fleet)):
            found |= prefetching.renew(self._fleet, demand_of, orders, now)
        return found

    def begins(self, instance: Instance, now: float) -> None:
        """A new instance: its assignment counts from now on."""
        self._instances[instance.instance_id] = instance
        self._fleet.put(instance.assignment, now)

    def promised(self, instance: Instance, now: float) -> None:
        """Its place belongs to another one from now on, whenever it becomes free."""
        self._now = now
        self._idle_since.pop(instance.instance_id, None)
        self._ends_at.pop(instance.instance_id, None)
        self._fleet.drop(instance.assignment, now)
        self._count_idle(instance.function)

    def ends(self, instance: Instance, now: float) -> None:
        self.promised(instance, now)
        self._instances.pop(instance.instance_id, None)
        self._noted.pop(instance.instance_id, None)

    def works(self, instance: Instance, now: float) -> None:
        """What it runs has changed."""
        self._now = now
        if not instance.running:
            self._fleet.note_work(instance.instance_id, None)
            self._ends_at.pop(instance.instance_id, None)
            if instance.heir is None:
                self._idle_since[instance.instance_id] = now
        else:
            self._idle_since.pop(instance.instance_id, None)
            if instance.heir is None:
                heapq.heappush(self._expected, self._expect(instance, now))
        self._count_idle(instance.function)

    def waits(self, function: Function, now: float) -> None:
        """One more request of the function waits."""
        for instance in function.instances:
            if instance.running:
                heapq.heappush(self._expected, self._expect(instance, now))

    def ran(self, function: Function, seconds: float) -> None:
        """A request of the function ran for so long."""
        self._durations.setdefault(function.record.key, Durations()).add(seconds)
        self._all_durations.add(seconds)

    def choose(self, function: Function, now: float) -> Candidate | None:
        """What to do for one more instance that is called for."""
        self._now = now
        self._asking = function.record.key
        self._expect_again(now)
        self._count_again()
        self._questions += 1
        waited = bool(function.queue)
        ask = Ask(
            function.record,
            waited=waited,
            existing=self._soonest(function, now) if waited and self.placing.careful else None,
            number=self._questions,
            since=function.queue[0].arrived_at if waited else None,
        )
        # Who was preempted preempts nobody: otherwise one arrival could put all others aside.
        calm = waited and function.queue[0].preempted > 0
        decision = choose(
            self._fleet,
            ask,
            now,
            placing=self._calm if calm else self.placing,
            abilities=EVERY_ABILITY,
            giving=self._giving,
        )
        return decision.chosen

    def assign(
        self, function: Function, node_id: str, device_count: int, source: str, now: float
    ) -> Assignment:
        """An assignment there, on devices that nobody holds."""
        address = next(self._fleet.free_addresses(node_id), None)
        assert address is not None, f"{node_id} has no spare address"
        self._number += 1
        record = function.record
        return Assignment(
            instance_id=f"0-{self._number}",
            function=record.key,
            generation=record.generation,
            node_id=node_id,
            address=address,
            epoch=0,
            created_at=now,
            devices=self._fleet.free_devices(node_id)[:device_count],
            source=source,
        )

    def _giving(self, placed: Placed) -> tuple[float, tuple[float, ...]] | None:
        """What an idle instance is worth, the longest idle one least; a loading one stays."""
        if placed.assignment.function == self._asking:
            return None
        since = self._idle_since.get(placed.instance_id)
        loss = self._fleet.spare_loss(placed.assignment.function)
        return None if since is None or loss is None else (loss, (since,))

    def _count_idle(self, function: Function) -> None:
        """Note what its idle instances are worth; to policies that do not care, nothing."""
        key = function.record.key
        idle = any(i.instance_id in self._idle_since for i in function.instances)
        self._idle_functions.pop(key, None)
        if not idle:
            self._fleet.note_spare(key, None)
            return
        self._idle_functions[key] = function
        loss = 0.0
        if self.placing.careful:
            demand, placed = self._demand_of(key), self._fleet.of_function(key)[0]
            loss = idle_loss(self._fleet, placed, demand, self._now)
        self._fleet.note_spare(key, loss)

    def _count_again(self) -> None:
        """What was not called meanwhile is worth less: look at those noted longest ago."""
        if self.placing.careful:
            for key in list(itertools.islice(self._idle_functions, COUNTED_AGAIN)):
                self._count_idle(self._idle_functions[key])

    def _expect(self, instance: Instance, now: float) -> _Expected:
        """Note what it runs, and when that is likely to be done."""
        durations = self._known(instance.function)
        left, tokens = 0.0, 0
        for request in instance.running.values():
            ran = max(0.0, now - request.begun_at)
            rest = durations.left_after(ran)
            left = max(left, durations.late_after(ran) if self.placing.careful else rest)
            half = rest / 2 if rest < math.inf else 0.0
            tokens += request.prompt_tokens + request.generated(ran + half)
        number = self._noted.get(instance.instance_id, 0) + 1
        self._noted[instance.instance_id] = number
        ends_at = now + max(left, 0.001)
        self._ends_at[instance.instance_id] = ends_at
        # With others of its own waiting, its end is not in sight.
        done_at = math.inf if instance.function.queue else ends_at
        work = Work(tokens, done_at)
        self._fleet.note_work(instance.instance_id, work)
        return ends_at, instance.instance_id, number, now

    def _known(self, function: Function) -> Durations:
        own = self._durations.get(function.record.key)
        return own if own is not None and len(own) >= DURATIONS_MINIMUM else self._all_durations

    def _expect_again(self, now: float) -> None:
        """What is expected to end soon may last: the longer it ran, the longer it may go on."""
        expected, kept = self._expected, []
        while expected and expected[0][0] <= now + SOON_SECONDS:
            item = heapq.heappop(expected)
            _, instance_id, number, noted_at = item
            instance = self._instances.get(instance_id)
            if instance is None or self._noted.get(instance_id) != number:
                continue
            if now - noted_at < EXPECTED_SECONDS:
                kept.append(item)
            elif instance.running and instance.heir is None:
                kept.append(self._expect(instance, now))
        for item in kept:
            heapq.heappush(expected, item)

    def _soonest(self, function: Function, now: float) -> tuple[str, float] | None:
        """The instance that would take the last of the queue, and in how many seconds."""
        free: list[tuple[float, str]] = []
        mean = self._known(function).left_after(0.0)
        concurrency = concurrency_of(function)
        for instance in function.instances:
            if instance.predecessor is not None:
                continue
            slots = concurrency - len(instance.running)
            if instance.state != "serving":
                expected_at = max(now, instance.expected_at)
                free += [(expected_at, instance.instance_id)] * slots
                continue
            free += [(now, instance.instance_id)] * slots
            ends_at = self._ends_at.get(instance.instance_id, math.inf)
            free += [(ends_at, instance.instance_id)] * len(instance.running)
        if not free:
            return None
        heapq.heapify(free)
        for _ in range(len(function.queue) - 1):
            at, instance_id = free[0]
            heapq.heapreplace(free, (at + mean, instance_id))
        at, instance_id = free[0]
        return (instance_id, max(0.0, at - now)) if at < math.inf else None


def concurrency_of(function: Function) -> int:
    return function.record.scaling.concurrency
