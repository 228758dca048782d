"""What a start of one function would take on every node at once: the estimate over columns."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from stoker.placement.estimate import (
    PREFILL_SECONDS,
    Source,
    Stages,
    missing_bytes,
    overlapped_seconds,
    serial_seconds,
)
from stoker.placement.fleet import Fleet
from stoker.placement.fleet_rows import Bools, Floats, Ints
from stoker.placement.learnt import PARKED
from stoker.placement.link_queues import Link
from stoker.placement.records import CheckpointRef, FunctionRecord

NO_PEER = -1


@dataclass(frozen=True)
class Forecast:
    """Seconds of each stage on each row; `peer` is the row that would send what is missing.

    The links' stages include what is queued before; `queued` and `bottleneck` are the terms of
    `q + n / b`. `overlapped` says which of the two estimates `seconds` is made by. A process
    stands by on the rows in `parked`.
    """

    process: Floats
    ssd: Floats
    net: Floats
    device: Floats
    prefill: float
    peer: Ints
    queued: Floats
    bottleneck: Floats
    tier: Ints
    ssd_bytes: Ints
    net_bytes: Ints
    contended: Bools
    overlapped: bool
    parked: list[int]

    @functools.cached_property
    def seconds(self) -> Floats:
        """Seconds to the first token where the room is already there."""
        return np.asarray(self.after(0.0))

    def after(self, room_seconds: Any, at: slice | int = slice(None)) -> Any:
        """Seconds to the first token, when the place is free in `room_seconds`, on row `at`."""
        if not self.overlapped:
            terms = self.queued[at], self.bottleneck[at]
            return serial_seconds(room_seconds, *terms, self.prefill)
        links = self.ssd[at], self.net[at], self.device[at]
        return overlapped_seconds(self.process[at], room_seconds, *links, self.prefill)

    def source(self, row: int) -> Source:
        """Where the slowest part of the weights comes from."""
        ssd, net = float(self.ssd[row]), float(self.net[row])
        if max(ssd, net) == 0.0:
            return "dram"
        if ssd > net:
            return "ssd"
        return "remote" if self.peer[row] == NO_PEER else "peer"

    def stages(self, row: int, room_seconds: float = 0.0) -> Stages:
        return Stages(
            room=room_seconds,
            process=float(self.process[row]),
            ssd=float(self.ssd[row]),
            net=float(self.net[row]),
            device=float(self.device[row]),
            prefill=self.prefill,
            source=self.source(row),
            ssd_bytes=int(self.ssd_bytes[row]),
            net_bytes=int(self.net_bytes[row]),
            contended=bool(self.contended[row]),
        )


def forecast(
    fleet: Fleet,
    function: FunctionRecord,
    now: float,
    *,
    overlapped: bool = True,
    peers: bool = True,
    prefill_seconds: float = PREFILL_SECONDS,
    share: float = 1.0,
) -> Forecast:
    """Predict a start of `function` on every row; rows without a node mean nothing.

    `peers` says whether nodes may send weights to each other; `overlapped`, which estimate counts.
    `prefill_seconds` is from the last byte to the first token.
    Of the weights each node loads a `share`, of which it holds as much as of all of them.
    """
    rows, size = fleet.rows, fleet.rows.size
    zeros = np.zeros(size)
    nobody = np.full(size, NO_PEER)
    ref, parked = function.checkpoint, fleet.parked[function.key]
    if ref is None:
        none, never = np.zeros(size, np.int64), np.zeros(size, np.bool_)
        process = _process_seconds(fleet, function, none, parked)
        times = zeros, zeros, zeros, 0.0, nobody, zeros, zeros
        return Forecast(process, *times, none, none, none, never, overlapped, parked)
    weight_bytes = math.ceil(ref.weight_bytes * share)
    from_ssd, from_afar = _missing(fleet, ref, share)
    ssd_wait, net_wait, device_wait = (
        rows.queues.seconds(link, size, now) for link in (Link.SSD, Link.NET, Link.DEVICE)
    )
    bandwidth = rows.store_bandwidth[:size]
    net_load, peer = rows.store_base[:size] + from_afar / bandwidth, nobody
    if peers:
        net_wait, net_load, bandwidth, peer = _from_peers(
            fleet, ref, from_afar, net_wait, net_load, now
        )
    to_device = weight_bytes / rows.device_bandwidth[:size]
    ssd_load = rows.ssd_base[:size] + from_ssd / rows.ssd_bandwidth[:size]
    contention = rows.contention[:size]
    ssd_seconds = np.where(from_ssd > 0, _behind(ssd_wait, ssd_load, contention), 0.0)
    net_seconds = np.where(from_afar > 0, _behind(net_wait, net_load, contention), 0.0)
    tier = np.where(from_afar > 0, 2, np.where(from_ssd > 0, 1, 0))
    queued = np.maximum(np.where(tier == 1, ssd_wait, 0.0), np.where(tier > 1, net_wait, 0.0))
    for row in fleet.holdings.loading(ref.digest):
        # On its way already: what is left of it, behind the loads before it.
        queued[row] = 0.0
        for link, seconds in ((Link.SSD, ssd_seconds), (Link.NET, net_seconds)):
            own, others = rows.queues.apart(link, row, ref.digest, now)
            seconds[row] = own + others if own > 0.0 else 0.0
            queued[row] = max(queued[row], others if own > 0.0 else 0.0)
    slowest = np.minimum(
        rows.device_bandwidth[:size],
        np.where(tier > 1, bandwidth, np.where(tier == 1, rows.ssd_bandwidth[:size], math.inf)),
    )
    return Forecast(
        process=_process_seconds(fleet, function, tier, parked),
        ssd=ssd_seconds,
        net=net_seconds,
        device=device_wait + to_device,
        prefill=prefill_seconds,
        peer=peer,
        queued=np.maximum(queued, device_wait),
        bottleneck=weight_bytes / slowest,
        tier=tier,
        ssd_bytes=from_ssd,
        net_bytes=from_afar,
        contended=queued > 0.0,
        overlapped=overlapped,
        parked=parked,
    )


def _missing(fleet: Fleet, ref: CheckpointRef, share: float) -> tuple[Ints, Ints]:
    """Bytes that each row must read: (from its disk, from afar)."""
    from_ssd = np.zeros(fleet.rows.size, np.int64)
    from_afar = np.full(fleet.rows.size, ref.weight_bytes)
    held, dram, ssd = fleet.holdings.columns(ref.digest)
    from_ssd[held], from_afar[held] = missing_bytes(ref.weight_bytes, dram, ssd)
    if share < 1.0:
        from_ssd = np.ceil(from_ssd * share).astype(np.int64)
        from_afar = np.ceil(from_afar * share).astype(np.int64)
    return from_ssd, from_afar


def _process_seconds(
    fleet: Fleet, function: FunctionRecord, tier: Ints, parked: list[int]
) -> Floats:
    rung = tier
    if parked:
        rung = tier.copy()
        rung[parked] = PARKED
    return fleet.learnt.process_seconds(function.key, rung)


def _behind(wait: Floats, load: Floats, contention: Floats) -> Floats:
    """How long a load takes behind what is queued."""
    return np.asarray((wait + load) * np.where(wait > 0.0, contention, 1.0))


def _from_peers(
    fleet: Fleet,
    ref: CheckpointRef,
    from_afar: Ints,
    wait: Floats,
    load: Floats,
    now: float,
) -> tuple[Floats, Floats, Floats, Ints]:
    """(wait, load, bandwidth, sender's row or none) by the best of the store and every peer."""
    rows, size = fleet.rows, fleet.rows.size
    receiving, bandwidth = wait, rows.store_bandwidth[:size]
    peer = np.full(size, NO_PEER)
    sending = rows.queues.seconds(Link.OUT, size, now)
    for sender, outgoing in _senders(fleet, ref, sending):
        rate = np.minimum(rows.peer_bandwidth[:size], outgoing)
        by_peer = rows.peer_base[:size] + from_afar / rate
        until = np.maximum(receiving, float(sending[sender]))
        better = until + by_peer < wait + load
        better[sender] = False
        wait = np.where(better, until, wait)
        load = np.where(better, by_peer, load)
        bandwidth = np.where(better, rate, bandwidth)
        peer[better] = sender
    return wait, load, bandwidth, peer


def _senders(fleet: Fleet, ref: CheckpointRef, sending: Floats) -> list[tuple[int, float]]:
    """(row, bytes per second) of the peers that hold all of it, without those that another one
    beats both in what it must send before and in how fast it sends.
    """
    held, rate = fleet.holdings.senders(ref)
    order = np.lexsort((fleet.rows.rank[held], -rate, sending[held]))
    held, rate = held[order], rate[order]
    best_before = np.maximum.accumulate(np.concatenate(([0.0], rate)))[:-1]
    best = rate > best_before
    return list(zip(held[best].tolist(), rate[best].tolist(), strict=True))
