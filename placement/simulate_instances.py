"""The lives of a simulation's instances: placed, loaded, moved, ended, lost with their node."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from stoker.placement.choice import Candidate
from stoker.placement.estimate import CONTROL_SECONDS, process_seconds, resume_seconds
from stoker.placement.records import InstanceRecord, InstanceState
from stoker.placement.scale import Demand
from stoker.placement.simulate_metrics import Outcome
from stoker.placement.simulate_parts import Function, Instance, Request
from stoker.placement.simulate_planner import FleetPlanner
from stoker.placement.simulate_prefetch import Prefetches
from stoker.placement.simulate_world import SimulatedNode, World

Act = Callable[[Any], None]


class Lifecycle(ABC):
    """Events in virtual time, and what happens to instances in them."""

    def __init__(self, world: World, planner: FleetPlanner) -> None:
        self.outcome = Outcome()
        self._now = 0.0
        self._world = world
        self._planner = planner
        self._events: list[tuple[float, int, Act, Any]] = []
        self._number = 0
        self._instances: dict[str, Instance] = {}
        # Those that wait for others to end what they run, and take their places.
        self._heirs: dict[str, Instance] = {}
        self._prefetches = (
            Prefetches(world, planner, self.outcome, self._at, self._demand_of)
            if planner.placing.prefetches
            else None
        )
        for node in world.nodes.values():
            self._announce(node)

    @abstractmethod
    def _begin(self, request: Request, instance: Instance, pause_seconds: float = 0.0) -> None:
        """Run the request from now on, after a pause."""

    @abstractmethod
    def _take_waiting(self, instance: Instance) -> None:
        """Give the instance's free slots to those who wait."""

    @abstractmethod
    def _retry_short(self) -> None:
        """A place may have become free for who found none."""

    @abstractmethod
    def _serves(self, instance: Instance, record: InstanceRecord) -> None:
        """Tell who decides that the instance serves from now on."""

    @abstractmethod
    def _demand_of(self, key: str, now: float) -> Demand:
        """What is known of the demand for a function."""

    @abstractmethod
    def _scale(self, function: Function) -> None:
        """Start what the function lacks."""

    def _step(self) -> None:
        at, _, act, argument = heapq.heappop(self._events)
        self._now = at
        act(argument)

    def _at(self, at: float, act: Callable[[Any], None], argument: Any) -> None:
        self._number += 1
        heapq.heappush(self._events, (at, self._number, act, argument))

    def _carry_out(self, chosen: Candidate, function: Function) -> list[Function]:
        """Do what was chosen; returns whose requests were put aside and must start anew."""
        displaced, leaving = [], []
        for victim in chosen.victims:
            instance = self._instances[victim.assignment.instance_id]
            if victim.how in ("stop", "preempt"):
                displaced += [f for f in (self._end(instance),) if f is not None]
            else:
                self._planner.promised(instance, self._now)
                leaving.append((instance, victim.target))
        made = self._place(function, chosen.node_id, chosen.device_count, chosen.peer)
        made.expected_at = self._now + chosen.seconds
        for instance, target in leaving:
            self._leave(instance, made, target)
        self._load(made)
        return displaced

    def _place(
        self, function: Function, node_id: str, device_count: int, source: str = ""
    ) -> Instance:
        assignment = self._planner.assign(function, node_id, device_count, source, self._now)
        node = self._world.nodes[node_id]
        instance = Instance(assignment, function, node, self._now)
        self._instances[assignment.instance_id] = instance
        function.instances.append(instance)
        if function.record.checkpoint is not None:
            node.pool.use(function.record.checkpoint.digest)
        self._planner.begins(instance, self._now)
        self._planner.put(self._record(instance, "starting"), self._now)
        self.outcome.starts += 1
        return instance

    def _load(self, instance: Instance) -> None:
        """Fetch its weights, and copy them to its devices once its place is free."""
        now, node = self._now, instance.node
        checkpoint = instance.function.record.checkpoint
        done = now
        if checkpoint is not None and (not instance.blockers or self._planner.placing.overlapped):
            if self._prefetches:
                self._prefetches.make_way(node, now)
            fetched = self._world.fetch(node, checkpoint, now, instance.assignment.source)
            if instance.state == "waiting":
                instance.tier = fetched.tier
                instance.state = "loading"
            for digest in fetched.evicted:
                self._planner.put(node.resident(digest), now)
            if self._prefetches:
                self._prefetches.go_on(node, now)
            if not instance.blockers:
                devices, size = instance.assignment.devices, checkpoint.weight_bytes
                done = node.copy_to_devices(devices, size, fetched, now)
        if not instance.blockers:
            instance.state = "loading"
            process_at = instance.placed_at + process_seconds(node.record)
            self._at(max(done, process_at) + CONTROL_SECONDS, self._ready, instance)

    def _ready(self, instance: Instance) -> None:
        if instance.state == "gone":
            return
        function, node = instance.function, instance.node
        instance.state = "serving"
        instance.ready_at = self._now
        function.start_seconds = self._now - instance.placed_at
        self._serves(instance, self._record(instance, "serving"))
        if function.record.checkpoint is not None:
            self._planner.put(node.resident(function.record.checkpoint.digest), self._now)
        before = instance.predecessor
        if before is not None and before.state != "gone" and before.running:
            tokens = max(request.tokens(self._now) for request in before.running.values())
            self._at(self._now + resume_seconds(tokens), self._hand_over, instance)
            return
        instance.predecessor = None
        self._take_waiting(instance)
        self._retry_short()

    def _leave(self, victim: Instance, heir: Instance, target: str) -> None:
        """Let the heir take its place: after its requests, or when they go on at `target`."""
        function = victim.function
        function.instances.remove(victim)
        victim.heir = heir
        heir.blockers.add(victim.instance_id)
        if not target:
            victim.leaving = True
            function.leaving += 1
            self._heirs[heir.instance_id] = heir
            return
        there = self._place(function, target, len(victim.assignment.devices))
        there.predecessor = victim
        self.outcome.migrations += 1
        self._load(there)

    def _hand_over(self, instance: Instance) -> None:
        """The last round of a migration: only what was generated meanwhile is computed again."""
        victim, instance.predecessor = instance.predecessor, None
        if instance.state == "gone":
            return
        if victim is not None and victim.state != "gone":
            token_seconds = instance.function.token_seconds
            for request in self._interrupt(victim):
                round_seconds = resume_seconds(request.tokens(self._now))
                gap = round_seconds / token_seconds if token_seconds > 0 else 0.0
                request.moved += 1
                self._begin(request, instance, resume_seconds(gap))
            self._end(victim)
        self._take_waiting(instance)
        self._retry_short()

    def _end(self, instance: Instance) -> Function | None:
        """Free its place at once; returns its function where requests have to start anew."""
        if instance.state == "gone":
            return None
        function, now = instance.function, self._now
        stopped = self._interrupt(instance)
        for request in reversed(stopped):
            request.preempted += 1
            function.queue.appendleft(request)
        self.outcome.preemptions += len(stopped)
        self._forget(instance)
        self.outcome.stops += 1
        self.outcome.instance_seconds += now - instance.placed_at
        heir = instance.heir
        if heir is not None:
            heir.blockers.discard(instance.instance_id)
            if not heir.blockers:
                self._heirs.pop(heir.instance_id, None)
            if not heir.blockers and heir.state != "gone":
                self._load(heir)
        if instance.leaving and function.queue:
            self._scale(function)
        return function if stopped else None

    def _forget(self, instance: Instance) -> None:
        function, now = instance.function, self._now
        instance.state = "gone"
        del self._instances[instance.instance_id]
        self._heirs.pop(instance.instance_id, None)
        if instance in function.instances:
            function.instances.remove(instance)
        function.leaving -= instance.leaving
        if function.record.checkpoint is not None:
            instance.node.pool.leave(function.record.checkpoint.digest)
        self._planner.drop(self._record(instance, "stopping"), now)
        self._planner.ends(instance, now)

    def _record(self, instance: Instance, state: InstanceState) -> InstanceRecord:
        made = instance.assignment
        return InstanceRecord(
            made.instance_id,
            made.function,
            made.generation,
            made.node_id,
            made.address,
            state,
            made.epoch,
            instance.placed_at,
            init_seconds=process_seconds(instance.node.record),
        )

    def _interrupt(self, instance: Instance) -> list[Request]:
        """Stop what it runs, as it stands."""
        stopped = list(instance.running.values())
        instance.running.clear()
        for request in stopped:
            ran = max(0.0, self._now - request.begun_at)
            self.outcome.busy_seconds += ran
            request.left_seconds = max(0.0, request.left_seconds - ran)
            request.epoch += 1
            request.queued_at = self._now
            request.function.in_flight -= 1
        return stopped

    # Nodes.

    def _announce(self, node: SimulatedNode) -> None:
        self._planner.put(node.record, self._now)
        for digest in node.ssd:
            self._planner.put(node.resident(digest), self._now)
        if self._prefetches:
            self._prefetches.go_on(node, self._now)

    def _fail(self, what: tuple[SimulatedNode, float]) -> None:
        """The node goes down for a while, with its instances and all that is in its memory."""
        node, seconds = what
        if not node.up:
            return
        self.outcome.failures += 1
        lost = [i for i in self._instances.values() if i.node is node]
        if self._prefetches:
            self._prefetches.fail(node, self._now)
        digests = {*node.ssd, *node.fail()}
        self._planner.drop(node.record, self._now)
        for digest in digests:
            self._planner.drop(node.resident(digest), self._now)
        displaced = {}
        for instance in lost:
            # Who was to take its place goes down with it.
            instance.heir = None
            if instance.predecessor is not None:
                self._stay(instance.predecessor)
            self._end(instance)
            displaced[instance.function.record.key] = instance.function
        for function in displaced.values():
            self._scale(function)
        self._at(self._now + seconds, self._recover, node)

    def _stay(self, victim: Instance) -> None:
        """The place to which its requests were to move is gone, so they stay."""
        heir = victim.heir
        if heir is None or heir.state == "gone":
            return
        blockers = [self._instances[key] for key in sorted(heir.blockers)]
        heir.blockers.clear()
        self._end(heir)
        for blocker in blockers:
            blocker.heir = None
            blocker.function.leaving -= blocker.leaving
            blocker.leaving = False
            blocker.function.instances.append(blocker)
            self._planner.begins(blocker, self._now)
            self._planner.works(blocker, self._now)
        self._scale(heir.function)

    def _reconsider(self) -> None:
        """Something became idle: the first of those that wait for others' ends may take it."""
        for heir in self._heirs.values():
            if all(self._instances[key].leaving for key in heir.blockers):
                self.outcome.starts -= 1
                self.outcome.stops -= 1
                self._stay(self._instances[min(heir.blockers)])
                return

    def _recover(self, node: SimulatedNode) -> None:
        node.up = True
        self._announce(node)
        self._retry_short()
