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
    KIND = 5
    NODE = 6


@dataclass(frozen=True)
class Survey:
    """By row: `lack`, with what was `found` and its `limit`; whether waiting can end it (`able`).

    `devices` is how many of its devices an instance takes. `seconds` are filled in by who predicts
    them, and `picked` names the row that was chosen.
    """

    node_ids: tuple[str, ...]
    lack: Ints
    found: Ints
    limit: Ints
    able: Bools
    devices: Ints
    seconds: Floats = field(default_factory=lambda: np.zeros(0))

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
            case Lack.KIND:
                return "it has no device of a kind that is asked for"
            case _:
                return None


def survey(fleet: Fleet, function: FunctionRecord) -> Survey:
    """Who has room for one more instance, and what the others lack."""
    rows, size = fleet.rows, fleet.rows.size
    present = rows.present[:size]
    used, slots = rows.slots_used[:size], rows.slots[:size]
    devices_free, devices_all = rows.devices_free[:size], rows.devices[:size]
    pool = rows.pool_bytes[:size]
    need = devices_needed(fleet, function.devices)
    pool_need = rows.pinned_bytes[:size].copy()
    own_bytes = 0
    if function.checkpoint is not None:
        own_bytes = pool_bytes(function.checkpoint)
        pool_need += own_bytes
        pool_need[fleet.holdings.pinning(function.checkpoint.digest)] -= own_bytes
    lack = np.zeros(size, np.int64)
    found, limit = np.zeros(size, np.int64), np.zeros(size, np.int64)
    # The last one that holds is the one that is told.
    for code, holds, is_found, is_limit in (
        (Lack.SOCKET, rows.spares[:size] <= 0, found, limit),
        (Lack.POOL, pool_need > pool, pool_need, pool) if own_bytes else (Lack.POOL, None, 0, 0),
        (Lack.DEVICE, need > devices_free, devices_free, devices_all),
        (Lack.SLOT, used >= slots, used, slots),
        (Lack.KIND, need < 0, found, limit),
        (Lack.NODE, ~present, found, limit),
    ):
        if holds is not None and holds.any():
            lack[holds] = code
            found = np.where(holds, is_found, found)
            limit = np.where(holds, is_limit, limit)
    able = present & (need >= 0) & (need <= devices_all) & (slots > 0) & (own_bytes <= pool)
    return Survey(rows.names, lack, found, limit, able, need)


def devices_needed(fleet: Fleet, needs: tuple[DeviceNeed, ...]) -> Ints:
    """How many of its devices an instance takes on each row; -1 where it cannot run."""
    rows, size = fleet.rows, fleet.rows.size
    if not needs:
        return np.zeros(size, np.int64)
    on_any = 0 if any(need.kind == "cpu" for need in needs) else -1
    by_kind = np.full(rows.kinds.count, on_any, np.int64)
    for need in reversed(needs):
        code = rows.kinds.known(need.kind)
        if code is not None and need.kind != "cpu":
            by_kind[code] = need.count
    counts = by_kind[rows.kind[:size]]
    too_many = counts > rows.devices[:size]
    return np.where(too_many & (on_any == 0), 0, counts)
