"""What each node lacks to take one more instance of a function: columns, and the same in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from stoker.placement.estimate import pool_bytes
from stoker.placement.fleet import Fleet
from stoker.placement.fleet_rows import Bools, Floats, Ints
from stoker.placement.records import DeviceNeed, FunctionRecord


class Lack(IntEnum):
    NOTHING = 0
    SLOT = 1
    POOL = 2
    SOCKET = 3
    DEVICE = 4
    MEMORY = 5
    KIND = 6
    NODE = 7


@dataclass(frozen=True)
class Survey:
    """By row: `lack`, with what was `found` and its `limit`; whether waiting can end it (`able`).

    `devices` is how many of its devices an instance takes, `asked` what it may run on in words, and
    `kinds` the devices that a `found` of the lack KIND is a number of. `seconds` are filled in by
    who predicts them.
    """

    node_ids: tuple[str, ...]
    lack: Ints
    found: Ints
    limit: Ints
    able: Bools
    devices: Ints
    seconds: Floats = field(default_factory=lambda: np.zeros(0))
    asked: str = ""
    kinds: tuple[str, ...] = ()

    @property
    def free(self) -> Bools:
        return np.asarray(self.lack == Lack.NOTHING)

    def rejected(self, chosen: str = "") -> Iterator[tuple[str, float, str]]:
        """(node, predicted seconds, why not) of every node but the chosen one, soonest first."""
        for row in np.argsort(self.seconds, kind="stable").tolist():
            if self.lack[row] != Lack.NODE and self.node_ids[row] != chosen:
                yield self.node_ids[row], float(self.seconds[row]), self.reason(row) or "slower"

    def refusals(self, count: int | None = None) -> tuple[tuple[str, str], ...]:
        """(node, what it lacks) of the first `count` nodes that lack something, by their ids."""
        lacking = np.flatnonzero((self.lack != Lack.NOTHING) & (self.lack != Lack.NODE))
        order = sorted(lacking.tolist(), key=lambda row: self.node_ids[row])
        return tuple((self.node_ids[row], self.reason(row) or "") for row in order[:count])

    def reason(self, row: int) -> str | None:
        """What the node lacks, or None."""
        found, limit = int(self.found[row]), int(self.limit[row])
        match Lack(int(self.lack[row])):
            case Lack.SLOT:
                return f"{found} of {limit} instances are in use"
            case Lack.POOL:
                return f"its weights need {found} B of a pool of {limit} B with the rest"
            case Lack.SOCKET:
                return "no listening socket is ready"
            case Lack.DEVICE:
                return f"{found} of its {limit} devices are free, {self.devices[row]} are needed"
            case Lack.MEMORY:
                return (
                    f"each of its devices has {limit} B, and its part of the weights is {found} B"
                )
            case Lack.KIND:
                has = f"{limit} of kind {self.kinds[found]}" if limit else "no devices"
                return f"it has {has}, and {self.asked} is asked for"
            case _:
                return None


def survey(fleet: Fleet, function: FunctionRecord) -> Survey:
    """Who has room for one more instance, and what the others lack."""
    rows, size = fleet.rows, fleet.rows.size
    present = rows.present[:size]
    used, slots = rows.slots_used[:size], rows.slots[:size]
    devices_free, devices_all = rows.devices_free[:size], rows.devices[:size]
    pool = rows.pool_bytes[:size]
    need = devices_needed(fleet, function)
    pool_need = rows.pinned_bytes[:size].copy()
    own_bytes = 0
    if function.checkpoint is not None:
        own_bytes = pool_bytes(function.checkpoint)
        pool_need += own_bytes
        pool_need[fleet.holdings.pinning(function.checkpoint.digest)] -= own_bytes
    lack = np.zeros(size, np.int64)
    found, limit = np.zeros(size, np.int64), np.zeros(size, np.int64)
    part, device_bytes = _parts(fleet, function, need)
    # The last one that holds is the one that is told.
    for code, holds, is_found, is_limit in (
        (Lack.SOCKET, rows.spares[:size] <= 0, found, limit),
        (Lack.POOL, pool_need > pool, pool_need, pool) if own_bytes else (Lack.POOL, None, 0, 0),
        (Lack.DEVICE, need > devices_free, devices_free, devices_all),
        (Lack.SLOT, used >= slots, used, slots),
        (Lack.MEMORY, part > device_bytes, part, device_bytes),
        (Lack.KIND, need < 0, rows.kind[:size], devices_all),
        (Lack.NODE, ~present, found, limit),
    ):
        if holds is not None and holds.any():
            lack[holds] = code
            found = np.where(holds, is_found, found)
            limit = np.where(holds, is_limit, limit)
    able = present & (need >= 0) & (need <= devices_all) & (slots > 0) & (own_bytes <= pool)
    able &= part <= device_bytes
    asked = " or ".join(map(_in_words, function.devices))
    return Survey(rows.names, lack, found, limit, able, need, asked=asked, kinds=rows.kinds.names)


def _parts(fleet: Fleet, function: FunctionRecord, need: Ints) -> tuple[Ints, Ints]:
    """(bytes of the weights on each of so many devices, bytes of each) on each row, where known."""
    device_bytes = fleet.rows.device_bytes[: fleet.rows.size]
    if function.checkpoint is None or not function.devices:
        return np.zeros_like(device_bytes), device_bytes
    split = np.where((need > 0) & (device_bytes > 0), need, np.iinfo(np.int64).max)
    return function.checkpoint.weight_bytes // split, device_bytes


def _in_words(need: DeviceNeed) -> str:
    return need.kind if need.kind == "cpu" else f"{need.kind}:{need.count}"


def devices_needed(fleet: Fleet, function: FunctionRecord) -> Ints:
    """How many of its devices an instance takes on each row; -1 where it cannot run.

    None where it may do without and the node's are too few or too small.
    """
    rows, size, needs = fleet.rows, fleet.rows.size, function.devices
    if not needs:
        return np.zeros(size, np.int64)
    on_any = 0 if any(need.kind == "cpu" for need in needs) else -1
    by_kind = np.full(rows.kinds.count, on_any, np.int64)
    for need in reversed(needs):
        code = rows.kinds.known(need.kind)
        if code is not None and need.kind != "cpu":
            by_kind[code] = need.count
    counts = by_kind[rows.kind[:size]]
    if on_any < 0:
        return counts
    part, device_bytes = _parts(fleet, function, counts)
    return np.where((counts > rows.devices[:size]) | (part > device_bytes), 0, counts)
