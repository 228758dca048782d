"""What the leader writes: each write is fenced, and seen in the view before the next begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import structlog

from stoker.placement.picture import Picture
from stoker.placement.plan import Plan
from stoker.placement.records import Assignment, CheckpointRef, FailureRecord, Prefetch, encode
from stoker.placement.scale_requests import RequestStore
from stoker.placement.store import ABSENT, Change, Entry, Fence
from stoker.placement.view import View

_log = structlog.get_logger()


class ControlStore(RequestStore, Protocol):
    """What the controller needs of the store."""

    def get(self, path: str) -> Entry | None: ...


class Commits:
    """Belongs to the controller, whose lock guards it. Fenced or CoordinationLost from each."""

    def __init__(self, store: ControlStore, view: View, picture: Picture, identity: str) -> None:
        self._store = store
        self._view = view
        self._picture = picture
        self._log = _log.bind(leader=identity)

    def failures(self, known: Mapping[str, FailureRecord], fence: Fence) -> None:
        """Write the failures that changed, for who asks why and for the next leader."""
        seen = self._view.snapshot().failures
        for key, failure in known.items():
            if seen.get(key) != failure:
                value = encode(failure)
                version = self._store.put(failure.path, value, fence=fence)
                self._view.apply(Change(failure.path, Entry(failure.path, value, version)))
        for key, failure in seen.items():
            if key not in known:
                self._store.delete(failure.path, fence=fence)
                self._view.apply(Change(failure.path, None))

    def plan(self, made: Plan, now: float, fence: Fence) -> None:
        """Carry it out: what ends first, for its place may be given away."""
        for stop in made.stops:
            assignment = stop.assignment
            self._store.delete(assignment.path, fence=fence)
            self._picture.rest(assignment, now)
            self._view.apply(Change(assignment.path, None))
            self._log.info(
                "instance_stopped",
                function=assignment.function,
                instance=assignment.instance_id,
                node=assignment.node_id,
                reason=stop.reason,
            )
        for start in made.starts:
            self.order(start, fence, expected=ABSENT)
            self._log.info(
                "instance_started",
                function=start.function,
                instance=start.instance_id,
                node=start.node_id,
                address=start.address,
            )

    def order(self, order: Assignment, fence: Fence, expected: int | None) -> None:
        """Write one order where the entry has the `expected` version; None for any."""
        value = encode(order)
        version = self._store.put(order.path, value, version=expected, fence=fence)
        self._view.apply(Change(order.path, Entry(order.path, value, version)))

    def prefetches(
        self, orders: Mapping[str, tuple[CheckpointRef, ...]], epoch: int, fence: Fence
    ) -> None:
        """Write what these nodes bring ahead, and forget what was said to nodes that are gone."""
        snapshot = self._view.snapshot()
        for node_id, checkpoints in orders.items():
            order = Prefetch(node_id, epoch, checkpoints)
            value = encode(order)
            version = self._store.put(order.path, value, fence=fence)
            self._view.apply(Change(order.path, Entry(order.path, value, version)))
        for node_id, order in snapshot.prefetches.items():
            if node_id not in snapshot.nodes:
                self._store.delete(order.path, fence=fence)
                self._view.apply(Change(order.path, None))
