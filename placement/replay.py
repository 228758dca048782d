"""A node's memory in virtual time: the same policies over a trace of requests. Pure.

Invariants: held bytes never exceed the capacity; what a request uses is never given up; the same
arguments give the same result.

One instance of a function takes all its requests, and starts do not slow each other down. A start
that finds no room is tried again whenever a function becomes idle, those that wait longest first.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from stoker.placement.keepalive import Policy, Prewarm
from stoker.placement.ladder import Ladder, Layer, Rung, climb_seconds
from stoker.placement.residency import Held, Residency


@dataclass(frozen=True, slots=True)
class Request:
    at: float
    function: str
    seconds: float


@dataclass(slots=True)
class Outcome:
    """What a replay measured. Seconds are virtual; memory is in bytes and bytes times seconds."""

    waits: list[float] = field(default_factory=list)
    """Of each request, in order of arrival: until its function serves, or until the end."""
    starts: Counter[Rung] = field(default_factory=Counter)
    """How many starts began at which rung; one that found the function idle but serving is warm."""
    queued: int = 0
    """Starts that had to wait until others ended, for want of memory."""
    evictions: int = 0
    prewarms: int = 0
    made_bytes: int = 0
    peak_bytes: int = 0
    byte_seconds: float = 0.0
    busy_seconds: float = 0.0
    """Of all functions: time with a request in flight, its start excluded."""
    serving_seconds: float = 0.0
    """Of all functions: time with a serving instance, starting and busy times included."""

    def cold_starts(self) -> int:
        """Starts that had to import or to read weights."""
        return sum(n for rung, n in self.starts.items() if rung < Rung.HOST)

    def all_starts(self) -> int:
        return sum(n for rung, n in self.starts.items() if rung < Rung.SERVING)


@dataclass(order=True, slots=True)
class _Event:
    at: float
    number: int
    act: Callable[[float], None] = field(compare=False)


@dataclass(slots=True)
class _Function:
    ladder: Ladder
    keys: frozenset[str]
    in_flight: int = 0
    ready_at: float = 0.0
    calls: int = 0
    waiting: list[tuple[int, float, float]] = field(default_factory=list)
    """Requests that wait for memory: their place in `waits`, when they came, how long they run."""


class Replay:
    """Feed it the requests in order of arrival, then `finish`."""

    def __init__(self, ladders: Mapping[str, Ladder], policy: Policy, capacity_bytes: int) -> None:
        for ladder in ladders.values():
            if ladder.byte_count > capacity_bytes:
                raise ValueError(
                    f"Expected room for {ladder.function} ({ladder.byte_count} B), "
                    f"found a capacity of {capacity_bytes} B."
                )
        self.outcome = Outcome()
        self._functions = {
            name: _Function(ladder, frozenset(layer.key for layer in ladder.layers))
            for name, ladder in ladders.items()
        }
        self._policy = policy
        self._memory = Residency(capacity_bytes)
        self._events: list[_Event] = []
        self._number = 0
        self._queue: list[_Function] = []

    def request(self, request: Request) -> None:
        """A request arrives; everything due before it happens first."""
        self._run_until(request.at)
        self._memory.pass_to(request.at)
        function = self._functions[request.function]
        self._policy.arrived(function.ladder, request.at)
        function.calls += 1
        function.waiting.append((len(self.outcome.waits), request.at, request.seconds))
        self.outcome.waits.append(0.0)
        if function.in_flight:
            self._admit(function, request.at)
        elif len(function.waiting) == 1 and not self._start(function, request.at):
            self.outcome.queued += 1
            self._queue.append(function)

    def finish(self, end: float) -> Outcome:
        """Let everything due until `end` happen, and close the accounts."""
        self._run_until(end)
        self._memory.pass_to(end)
        for function in self._queue:
            for index, arrived_at, _ in function.waiting:
                self.outcome.waits[index] = end - arrived_at
        self.outcome.peak_bytes = self._memory.peak_bytes
        self.outcome.serving_seconds = self._memory.serving_seconds
        self.outcome.byte_seconds = self._memory.byte_seconds
        return self.outcome

    def _run_until(self, now: float) -> None:
        while self._events and self._events[0].at <= now:
            event = heapq.heappop(self._events)
            self._memory.pass_to(event.at)
            event.act(event.at)

    def _at(self, at: float, act: Callable[[float], None]) -> None:
        if at < math.inf:
            self._number += 1
            heapq.heappush(self._events, _Event(at, self._number, act))

    def _start(self, function: _Function, now: float) -> bool:
        """Bring up what `function` lacks to serve, if there is room, and take its requests."""
        ladder, memory = function.ladder, self._memory
        held = memory.held(function.keys)
        rung = ladder.rung({key for key in held if memory[key].ready_at <= now})
        if not self._make_room(ladder.layers, math.inf, now):
            return False
        function.ready_at = now + self._climb_seconds(ladder.layers, now)
        self._add(ladder, ladder.layers, function.ready_at, math.inf)
        for layer in ladder.layers:
            memory[layer.key].users += 1
            memory[layer.key].deadline = math.inf
        self.outcome.starts[rung] += 1
        self._admit(function, now)
        return True

    def _admit(self, function: _Function, now: float) -> None:
        """Run the requests that wait for `function`, which serves or is starting."""
        begins = max(now, function.ready_at)
        for index, arrived_at, seconds in function.waiting:
            self.outcome.waits[index] = begins - arrived_at
            function.in_flight += 1
            self._at(begins + seconds, partial(self._end, function))
        function.waiting.clear()

    def _end(self, function: _Function, now: float) -> None:
        function.in_flight -= 1
        if function.in_flight:
            return
        self.outcome.busy_seconds += now - function.ready_at
        self._policy.left(function.ladder, now)
        for layer in function.ladder.layers:
            held = self._memory[layer.key]
            held.users -= 1
            if not held.users:
                self._keep(held, now + self._policy.keep_seconds(layer, now))
        for layer in reversed(function.ladder.layers):
            self._memory.expire(layer.key, now)
        prewarm = self._policy.prewarm(function.ladder, now)
        if prewarm is not None:
            act = partial(self._prewarm, function, function.calls, prewarm)
            self._at(now + prewarm.after_seconds, act)
        waiting, self._queue = self._queue, []
        self._queue = [one for one in waiting if not self._start(one, now)]

    def _prewarm(self, function: _Function, calls: int, wanted: Prewarm, now: float) -> None:
        """Make layers ready ahead of a request, where that costs nothing of more worth."""
        if function.calls != calls:
            return
        layers = function.ladder.up_to(wanted.rung)
        missing = [layer for layer in layers if self._memory.get(layer.key) is None]
        worth = self._policy.priority(missing, now) if missing else 0.0
        if missing and not self._make_room(layers, worth, now):
            return
        self.outcome.prewarms += bool(missing)
        self._add(function.ladder, layers, now + self._climb_seconds(layers, now), now)
        for layer in layers:
            held = self._memory[layer.key]
            if not held.users:
                self._keep(held, max(held.deadline, now + wanted.keep_seconds))

    def _keep(self, held: Held, deadline: float) -> None:
        """Keep a layer until `deadline`, but not for longer than what it rests on."""
        below = (self._memory[key].deadline for key in held.below)
        held.deadline = min((deadline, *below))
        self._at(held.deadline, partial(self._memory.expire, held.layer.key))

    def _make_room(self, layers: Sequence[Layer], worth: float, now: float) -> bool:
        """Room for those of `layers` that are missing; the others count as used meanwhile."""
        memory = self._memory
        held = memory.held(layer.key for layer in layers)
        for key in held:
            memory[key].users += 1
        went = memory.make_room(
            sum(layer.byte_count for layer in layers if layer.key not in held),
            lambda group: self._policy.priority(group, now),
            now,
            worth,
        )
        for key in held:
            memory[key].users -= 1
        if went:
            self.outcome.evictions += len(went)
            self._policy.evicted(went, now)
        return went is not None

    def _climb_seconds(self, layers: Sequence[Layer], now: float) -> float:
        """Until all `layers` are there: those on their way need only what is left of it."""
        steps = []
        for layer in layers:
            held = self._memory.get(layer.key)
            seconds = layer.seconds if held is None else max(0.0, held.ready_at - now)
            steps.append((layer.rung, min(seconds, layer.seconds)))
        return climb_seconds(steps)

    def _add(
        self, ladder: Ladder, layers: Sequence[Layer], ready_at: float, deadline: float
    ) -> None:
        for layer in layers:
            if self._memory.get(layer.key) is None:
                self._memory.add(ladder, layer, ready_at, deadline)
                self.outcome.made_bytes += layer.byte_count


def replay(
    ladders: Mapping[str, Ladder],
    requests: Iterable[Request],
    policy: Policy,
    capacity_bytes: int,
    end: float,
) -> Outcome:
    """What `policy` makes of the requests, which come in order, on a node of this capacity.

    ValueError where a function by itself does not fit.
    """
    node = Replay(ladders, policy, capacity_bytes)
    for request in requests:
        node.request(request)
    return node.finish(end)
