"""How a place on a node becomes free: whom to stop, wait for, migrate or preempt. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stoker.placement.estimate import pool_bytes
from stoker.placement.fleet import Fleet, Placed
from stoker.placement.records import Assignment, CheckpointRef

How = Literal["stop", "wait", "migrate", "preempt"]


@dataclass(frozen=True, slots=True)
class Victim:
    """An instance that makes room, `seconds` from now; `target` is where a migrated one goes on."""

    assignment: Assignment
    how: How
    seconds: float
    target: str = ""


@dataclass(frozen=True, slots=True)
class Option:
    """One way for one instance to go. `loss_seconds` is the waiting that it will probably cost
    others, `order` begins with the same for each byte.
    """

    victim: Victim
    loss_seconds: float
    order: tuple[float, ...]
    placed: Placed


@dataclass(frozen=True, slots=True)
class Room:
    """The victims that make a place, when it is free, and what that costs others."""

    victims: tuple[Victim, ...]
    seconds: float
    loss_seconds: float


@dataclass(frozen=True, slots=True)
class Lack:
    """What a node must still get free, beside a place in the pool for `checkpoint`."""

    slots: int
    devices: int
    checkpoint: CheckpointRef | None


def make_room(
    fleet: Fleet, row: int, lack: Lack, options: Sequence[Option], *, serial: bool
) -> Room | None:
    """The room that is there soonest, and of those the one that costs others least.

    No more go than must: victims come until there is room in slots and pool, those that are gone
    soonest and cost least first (where only the pool lacks: by what they cost for their bytes), and
    then every one goes free without whom it would still fit. Where devices lack, a dynamic
    programme finds the best set. `serial`: one goes after the other, so times add up.
    """
    places = lack.slots > 0 or lack.devices > 0

    def rank(option: Option) -> tuple[object, ...]:
        loss = option.loss_seconds if places else 0.0
        return option.victim.seconds, loss, option.order, option.placed.instance_id

    ordered = sorted(options, key=rank)
    taken: list[Option] = []
    for option in ordered:
        if any(option.placed is other.placed for other in taken):
            continue
        taken.append(option)
        if _fits(fleet, row, lack, taken):
            break
    else:
        return None
    if lack.devices > 0:
        slowest = math.inf if serial else taken[-1].victim.seconds
        soon = [option for option in ordered if option.victim.seconds <= slowest]
        best = cheapest(soon, lack.devices, serial=serial)
        if best is not None and _fits(fleet, row, lack, best):
            return _room(best, serial=serial)
    for option in tuple(taken):
        others = [other for other in taken if other is not option]
        if _fits(fleet, row, lack, others):
            taken = others
    return _room(taken, serial=serial)


def cheapest(options: Sequence[Option], devices: int, *, serial: bool) -> list[Option] | None:
    """The options that free `devices` at the least cost: instances x missing devices.

    `best[j]` is the least (cost, count) that frees j devices or more.
    """
    best: list[tuple[float, int, tuple[Option, ...]] | None] = [(0.0, 0, ())]
    best += [None] * devices
    for group in _by_instance(options):
        after = list(best)
        for option in group:
            size = len(option.placed.assignment.devices)
            cost = option.loss_seconds + (option.victim.seconds if serial else 0.0)
            for j in range(1, devices + 1):
                before = best[max(0, j - size)] if size else None
                if before is None:
                    continue
                grown = (before[0] + cost, before[1] + 1, (*before[2], option))
                present = after[j]
                if present is None or grown[:2] < present[:2]:
                    after[j] = grown
        best = after
    found = best[devices]
    return None if found is None else list(found[2])


def _by_instance(options: Sequence[Option]) -> list[list[Option]]:
    groups: dict[str, list[Option]] = {}
    for option in options:
        groups.setdefault(option.placed.instance_id, []).append(option)
    return list(groups.values())


def _room(taken: Sequence[Option], *, serial: bool) -> Room:
    seconds = [option.victim.seconds for option in taken]
    return Room(
        tuple(option.victim for option in taken),
        sum(seconds) if serial else max(seconds, default=0.0),
        sum(option.loss_seconds for option in taken),
    )


def _fits(fleet: Fleet, row: int, lack: Lack, going: Sequence[Option]) -> bool:
    if len(going) < lack.slots:
        return False
    if sum(len(option.placed.assignment.devices) for option in going) < lack.devices:
        return False
    if lack.checkpoint is None:
        return True
    gone = {id(option.placed) for option in going}
    left = [placed.checkpoint for placed in fleet.on_row(row) if id(placed) not in gone]
    pinned = {ref.digest: ref for ref in (*left, lack.checkpoint) if ref is not None}
    return sum(map(pool_bytes, pinned.values())) <= int(fleet.rows.pool_bytes[row])
