"""How a place on a node becomes free: whom to stop, drain, wait for, migrate or preempt. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from stoker.placement.estimate import pool_bytes
from stoker.placement.fleet import Fleet, Placed
from stoker.placement.records import Assignment, CheckpointRef

How = Literal["stop", "wait", "migrate", "preempt", "drain"]


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
    others, `order` begins with its priority and, of an idle one, the same for each byte.
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
    fleet: Fleet,
    row: int,
    lack: Lack,
    options: Sequence[Option],
    start_seconds: Callable[[float], float],
    *,
    serial: bool,
) -> Room | None:
    """The room with which the start, what it costs others included, is soonest.

    `start_seconds` says how long the start takes with room in so many seconds. `serial`: one
    victim goes after the other, so their times add up. Where the pool lacks room too, victims are
    taken by what they cost for their bytes, and every one goes free without whom it still fits.
    """
    found = None
    if lack.devices > 0:
        sizes = {o.placed.instance_id: len(o.placed.assignment.devices) for o in options}
        found = _best(options, sizes, lack.devices, start_seconds, serial=serial)
    elif lack.slots > 0:
        sizes = {o.placed.instance_id: 1 for o in options}
        found = _best(options, sizes, lack.slots, start_seconds, serial=serial)
    if found is None or not _fits(fleet, row, lack, found):
        found = _greedy(fleet, row, lack, options)
    if found is None:
        return None
    seconds = [option.victim.seconds for option in found]
    return Room(
        tuple(option.victim for option in found),
        sum(seconds) if serial else max(seconds, default=0.0),
        sum(option.loss_seconds for option in found),
    )


def _best(
    options: Sequence[Option],
    sizes: dict[str, int],
    count: int,
    start_seconds: Callable[[float], float],
    *,
    serial: bool,
) -> list[Option] | None:
    """The set that frees `count` with the least start and loss together.

    Side by side, the slowest counts: the cheapest set is found among the options that are no
    slower, for one limit after the other, until the limit alone costs more.
    """
    if serial:
        return cheapest(options, sizes, count, lambda o: o.victim.seconds + o.loss_seconds)
    best: tuple[float, list[Option]] | None = None
    for limit in sorted({option.victim.seconds for option in options}):
        start = start_seconds(limit)
        if best is not None and start >= best[0]:
            break
        soon = [option for option in options if option.victim.seconds <= limit]
        found = cheapest(soon, sizes, count, lambda option: option.loss_seconds)
        if found is not None:
            cost = start + sum(option.loss_seconds for option in found)
            if best is None or cost < best[0]:
                best = cost, found
    return best[1] if best else None


def cheapest(
    options: Sequence[Option],
    sizes: dict[str, int],
    count: int,
    cost: Callable[[Option], float],
) -> list[Option] | None:
    """The options of least cost that free `count`: a dynamic programme, instances x what lacks.

    `sizes` says what each instance frees; of its options one is taken at most. `best[j]` is the
    least (cost, number, orders) that frees j or more.
    """
    nothing: tuple[float, int, tuple[tuple[float, ...], ...], tuple[Option, ...]] = (0.0, 0, (), ())
    best = [nothing, *[None] * count]
    groups: dict[str, list[Option]] = {}
    for option in sorted(options, key=lambda o: (o.order, o.placed.instance_id)):
        groups.setdefault(option.placed.instance_id, []).append(option)
    for instance_id, group in groups.items():
        after, size = list(best), sizes[instance_id]
        for option in group:
            for j in range(1, count + 1):
                before = best[max(0, j - size)] if size else None
                if before is None:
                    continue
                total, number = before[0] + cost(option), before[1] + 1
                orders = (*before[2], option.order)
                present = after[j]
                if present is None or (total, number, orders) < present[:3]:
                    after[j] = (total, number, orders, (*before[3], option))
        best = after
    found = best[count]
    return None if found is None else list(found[3])


def _greedy(fleet: Fleet, row: int, lack: Lack, options: Sequence[Option]) -> list[Option] | None:
    ordered = sorted(options, key=lambda o: (o.victim.seconds, o.order, o.placed.instance_id))
    taken: list[Option] = []
    for option in ordered:
        if any(option.placed is other.placed for other in taken):
            continue
        taken.append(option)
        if _fits(fleet, row, lack, taken):
            break
    else:
        return None
    for option in tuple(taken):
        others = [other for other in taken if other is not option]
        if _fits(fleet, row, lack, others):
            taken = others
    return taken


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
