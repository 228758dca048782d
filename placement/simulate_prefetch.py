"""Nodes that bring what they were told before anybody calls it, in virtual time.

One checkpoint after the other; whatever somebody waits for goes first at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stoker.placement.prefetch import Order, Prefetching
from stoker.placement.scale import Demand
from stoker.placement.simulate_metrics import Outcome
from stoker.placement.simulate_planner import FleetPlanner
from stoker.placement.simulate_world import SimulatedNode, World

At = Callable[[float, Callable[[Any], None], Any], None]


class Prefetches:
    """`at` lets something happen later; `demand_of` is a function's demand at a moment."""

    def __init__(
        self,
        world: World,
        planner: FleetPlanner,
        outcome: Outcome,
        at: At,
        demand_of: Callable[[str, float], Demand],
    ) -> None:
        self._world = world
        self._planner = planner
        self._outcome = outcome
        self._at = at
        self._demand_of = demand_of
        self._prefetching = Prefetching()
        self._orders: dict[str, Order] = {}
        # Which nodes bring a checkpoint just now.
        self._bringing: dict[str, dict[str, SimulatedNode]] = {}

    def renew(self, now: float) -> None:
        """Decide anew what some of the nodes bring."""
        for digest in tuple(self._bringing):
            self.tell(digest, now)

        def demand_of(key: str) -> Demand:
            return self._demand_of(key, now)

        orders = self._planner.prefetches(self._prefetching, demand_of, self._orders, now)
        self._orders.update(orders)
        for node_id in orders:
            self.go_on(self._world.nodes[node_id], now)

    def go_on(self, node: SimulatedNode, now: float) -> None:
        """Bring the first of its order that is missing, once nobody waits for the link."""
        ahead = node.ahead
        if ahead.digest or not node.up:
            return
        room = node.pool.free_bytes - sum(ahead.read.values())
        for ref in self._orders.get(node.record.node_id, ()):
            digest, size = ref.digest, ref.weight_bytes
            if digest in node.pool or size - ahead.read.get(digest, 0) > room:
                continue
            link = node.ssd_link if digest in node.ssd else node.net_in
            if link.free_at > now:
                if link.free_at > ahead.waits_until:
                    ahead.waits_until = link.free_at
                    self._at(link.free_at, self._go_on_at, (node, link.free_at))
                return
            self._bringing.setdefault(digest, {})[node.record.node_id] = node
            done_at = node.begin_ahead(digest, size, link, now)
            self._at(done_at, self._done, (node, ahead.number, done_at))
            return

    def make_way(self, node: SimulatedNode, now: float) -> None:
        """Somebody waits for a load there: stop, and keep what came."""
        digest = node.ahead.digest
        if digest:
            node.stop_ahead(now)
            self._end(node, digest)
            self._planner.put(node.resident(digest), now)

    def fail(self, node: SimulatedNode, now: float) -> None:
        """The node goes down."""
        self.make_way(node, now)
        node.ahead.read.clear()
        node.ahead.waits_until = 0.0

    def tell(self, digest: str, now: float) -> None:
        """Tell who decides how much of it has come where."""
        for node in self._bringing.get(digest, {}).values():
            self._planner.put(node.resident(digest, now), now)

    def _go_on_at(self, what: tuple[SimulatedNode, float]) -> None:
        node, at = what
        if node.ahead.waits_until == at:
            self.go_on(node, at)

    def _done(self, what: tuple[SimulatedNode, int, float]) -> None:
        node, number, now = what
        digest, size = node.ahead.digest, node.ahead.size
        if node.ahead.number != number or not digest:
            return
        node.stop_ahead(now)
        self._end(node, digest)
        del node.ahead.read[digest]
        if node.pool.free_bytes >= size:
            node.pool.add(digest, size)
            node.keep_on_ssd(digest, size)
            self._outcome.prefetches += 1
        self._planner.put(node.resident(digest), now)
        self.go_on(node, now)

    def _end(self, node: SimulatedNode, digest: str) -> None:
        del self._bringing[digest][node.record.node_id]
        if not self._bringing[digest]:
            del self._bringing[digest]
