"""How long a decision takes, what a change costs and what the columns hold.

One decision is what `plan` makes of one function with a request waiting: settle it, predict the
start on every node, choose, and carry it out on the columns. What it started is dropped again, so
each decision meets the same cluster. The store is not part of it. Times are the thread's own, so
that what else runs on the machine does not count.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count

import psutil
from fleet_of import NOW, Shape, records_of

from stoker.placement.choice import Ask, choose, nothing_gives
from stoker.placement.fleet import Fleet, Work
from stoker.placement.memory_store import MemoryStore
from stoker.placement.placing import EVERY_ABILITY
from stoker.placement.plan import note_spare, plan
from stoker.placement.records import FunctionRecord, NodeRecord, encode
from stoker.placement.scale import Demand
from stoker.placement.store import Change, Entry
from stoker.placement.view import View

TARGET = Shape(nodes=1000, models=1000, instances=4000, places=8)
CURVE = (10, 30, 100, 300, 1000, 3000, 10_000)
WARM_UP = 50
WAITING = Demand(queued=1, last_needed=(NOW,))
IDLE = Demand(last_needed=(NOW - 10.0,), calls=3, calls_since=NOW - 600.0)


@dataclass(frozen=True)
class Times:
    """Milliseconds of many calls."""

    p50: float
    p99: float
    per_second: float

    @classmethod
    def of(cls, seconds: list[float]) -> Times:
        ordered = sorted(seconds)
        p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
        return cls(statistics.median(ordered) * 1e3, p99 * 1e3, len(ordered) / sum(ordered))


def timed(calls: list[Callable[[], object]], undo: Callable[[object], None]) -> Times:
    """Each call timed by itself; `undo` takes what it returned back, untimed."""
    seconds = []
    for number, call in enumerate(calls):
        began = time.thread_time()
        made = call()
        taken = time.thread_time() - began
        undo(made)
        if number >= WARM_UP:
            seconds.append(taken)
    return Times.of(seconds)


def decisions(shape: Shape, times: int) -> Times:
    """Starts of functions drawn by chance, where nodes have room."""
    return _planned(Fleet(records_of(shape), NOW), times, {})


def full_decisions(shape: Shape, times: int) -> Times:
    """The same where no node has room: idle instances of other functions give way."""
    full = replace(shape, places=shape.instances // shape.nodes)
    fleet = Fleet(records_of(full), NOW)
    demand = dict.fromkeys(fleet.functions, IDLE)
    for key in fleet.functions:
        note_spare(fleet, fleet.functions[key], IDLE, NOW)
    return _planned(fleet, times, demand)


def migrating_decisions(shape: Shape, times: int) -> Times:
    """The same where every instance is busy and may be moved; one node in a hundred has room."""
    full = replace(shape, places=shape.instances // shape.nodes)
    fleet = Fleet(records_of(full), NOW)
    chance = random.Random(2)
    for instance_id in fleet.assignments:
        fleet.note_work(instance_id, Work(chance.randrange(2048), NOW + chance.uniform(1.0, 60.0)))
    for node in list(fleet.nodes.values())[::100]:
        fleet.put(replace(node, instances_maximum=full.places + 1), NOW)
    calls = [
        lambda function=function: choose(
            fleet, Ask(function), NOW, abilities=EVERY_ABILITY, giving=nothing_gives
        )
        for function in _drawn(fleet, times)
    ]
    return timed(calls, lambda _: None)


def sweep_milliseconds(shape: Shape) -> float:
    """A plan for the whole cluster when every function is busy and nothing is to be done."""
    fleet = Fleet(records_of(shape), NOW)
    demand = {
        key: Demand(in_flight=len(fleet.of_function(key)), last_needed=(NOW,))
        for key in fleet.functions
    }
    began = time.thread_time()
    plan(fleet, demand, NOW, epoch=1)
    return (time.thread_time() - began) * 1e3


def updates(shape: Shape, times: int) -> tuple[Times, float]:
    """From a node's changed record to columns and snapshot that show it; and the memory of both.

    The record is decoded as it comes from the store.
    """
    before = psutil.Process().memory_info().rss
    store = MemoryStore()
    for record in records_of(shape):
        store.put(record.path, encode(record))
    view = View(store)
    snapshot, changes = view.changes()
    fleet = Fleet([record for _, record in changes if record is not None], NOW)
    megabytes = (psutil.Process().memory_info().rss - before) / 1e6
    nodes, versions = list(snapshot.nodes.values()), count(1)

    def event(node: NodeRecord, bandwidth: float) -> None:
        changed = replace(node, remote_bandwidth=bandwidth)
        view.apply(Change(node.path, Entry(node.path, encode(changed), next(versions))))
        for _, after in view.changes()[1]:
            if after is not None:
                fleet.put(after, NOW)

    chance = random.Random(3)
    drawn = [chance.choice(nodes) for _ in range(times + WARM_UP)]
    calls = [
        lambda node=node, number=number: event(node, 1e9 + number)
        for number, node in enumerate(drawn)
    ]
    return timed(calls, lambda _: None), megabytes


def _planned(fleet: Fleet, times: int, demand: dict[str, Demand]) -> Times:
    numbers = count()

    def decide(function: FunctionRecord) -> object:
        asked = demand or {}
        asked[function.key] = replace(WAITING, queued=len(fleet.of_function(function.key)) + 1)
        return plan(fleet, asked, NOW, epoch=2, first_number=next(numbers), only=[function.key])

    def undo(made: object) -> None:
        for start in made.starts:  # type: ignore[attr-defined]
            fleet.drop(start, NOW)
            if demand:
                demand[start.function] = IDLE
                note_spare(fleet, fleet.functions[start.function], IDLE, NOW)
        for stop in made.stops:  # type: ignore[attr-defined]
            fleet.put(stop.assignment, NOW)
            note_spare(fleet, fleet.functions[stop.assignment.function], IDLE, NOW)

    calls = [lambda function=function: decide(function) for function in _drawn(fleet, times)]
    return timed(calls, undo)


def _drawn(fleet: Fleet, times: int) -> list[FunctionRecord]:
    chance = random.Random(1)
    functions = list(fleet.functions.values())
    return [chance.choice(functions) for _ in range(times + WARM_UP)]
