"""How long each link of each node is still taken by loads already under way.

    SSD   reading from the node's own disk        key: digest
    NET   receiving, from the store or a peer      key: digest
    DEVICE  copying into device memory             key: instance id
    OUT   sending to other nodes                   key: (receiver's row, digest)

A load's share of a link is kept as seconds of the whole link. Loads drain first come, first served
while time passes, and what a node reports of its progress replaces what was reckoned.

A load with a deadline is a promise. Whoever joins a link with n loads leaves each 1 / (n + 1) of
it, and may do so only where every promise then still holds (HydraServe's rule).
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Link(IntEnum):
    SSD = 0
    NET = 1
    DEVICE = 2
    OUT = 3


@dataclass(slots=True)
class _Share:
    seconds: float
    deadline: float


class LinkQueues:
    """Columns `[link, row]`; `grow` before a new row is used. Not thread-safe."""

    def __init__(self) -> None:
        self._shares: dict[tuple[Link, int], dict[Hashable, _Share]] = {}
        self._noted_at = np.zeros((len(Link), 0))
        self._total = np.zeros((len(Link), 0))
        self._open_at = np.zeros((len(Link), 0))

    def grow(self, rows: int) -> None:
        more = ((0, 0), (0, rows - self._total.shape[1]))
        self._noted_at = np.pad(self._noted_at, more)
        self._total = np.pad(self._total, more)
        self._open_at = np.pad(self._open_at, more, constant_values=-math.inf)

    def note(
        self,
        link: Link,
        row: int,
        key: Hashable,
        seconds: float,
        now: float,
        deadline: float = math.inf,
    ) -> None:
        """The load called `key` takes `seconds` more of the link; it keeps its place."""
        shares = self._shares.setdefault((link, row), {})
        self._drain(link, row, shares, now)
        shares[key] = _Share(seconds, deadline)
        self._sum_up(link, row, shares, now)

    def forget(self, link: Link, row: int, key: Hashable, now: float) -> None:
        """The load is done or given up."""
        shares = self._shares.get((link, row))
        if shares is None or key not in shares:
            return
        self._drain(link, row, shares, now)
        del shares[key]
        if not shares:
            del self._shares[link, row]
        self._sum_up(link, row, shares, now)

    def deadline_of(self, link: Link, row: int, key: Hashable) -> float | None:
        """When the load called `key` is promised to be done; None if it is not on the link."""
        share = self._shares.get((link, row), {}).get(key)
        return None if share is None else share.deadline

    def seconds(self, link: Link, rows: int, now: float) -> NDArray[np.float64]:
        """For each of the first `rows` rows, how long the link is taken from now on."""
        left = self._total[link, :rows] - np.maximum(0.0, now - self._noted_at[link, :rows])
        return np.maximum(0.0, left)

    def apart(self, link: Link, row: int, key: Hashable, now: float) -> tuple[float, float]:
        """Seconds that the load called `key` still takes, and that all others take."""
        credit = max(0.0, now - float(self._noted_at[link, row]))
        own = others = 0.0
        for name, share in self._shares.get((link, row), {}).items():
            left = max(0.0, share.seconds - credit)
            credit = max(0.0, credit - share.seconds)
            if name == key:
                own = left
            else:
                others += left
        return own, others

    def closed(self, link: Link, rows: int, now: float) -> NDArray[np.bool_]:
        """Whether one more load on the link would break a promise, for the first `rows` rows."""
        return self._open_at[link, :rows] > now

    def _drain(self, link: Link, row: int, shares: dict[Hashable, _Share], now: float) -> None:
        credit = now - float(self._noted_at[link, row])
        for share in shares.values():
            if credit <= 0.0:
                break
            taken = min(credit, share.seconds)
            share.seconds -= taken
            credit -= taken

    def _sum_up(self, link: Link, row: int, shares: dict[Hashable, _Share], now: float) -> None:
        self._noted_at[link, row] = now
        self._total[link, row] = sum(share.seconds for share in shares.values())
        self._open_at[link, row] = _opens_at(shares, now)


def _opens_at(shares: dict[Hashable, _Share], now: float) -> float:
    """From when on one more load breaks no promise.

    After t seconds at 1 / n of the link, a load of s seconds with d seconds to its deadline needs
    s - t / n <= (d - t) / (n + 1), which holds from t = n (n + 1) s - n d on.
    """
    count = len(shares)
    return max(
        (
            now + count * ((count + 1) * share.seconds - (share.deadline - now))
            for share in shares.values()
            if share.seconds > 0.0 and share.deadline < math.inf
        ),
        default=-math.inf,
    )
