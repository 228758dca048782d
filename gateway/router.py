"""Which instance takes a request now, and the bounded queue of those for which none can.

Everything here runs in the event loop's thread. Invariants, for each function:
- a target never has more than the function's `concurrency` of our requests in flight;
- a newcomer is dispatched only when nobody waits: the queue is first in, first out;
- at most one call to placement is under way.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from stoker.gateway.queue_limit import queue_full, queue_length_maximum
from stoker.gateway.targets import Target, choose, targets
from stoker.placement.errors import (
    CoordinationLost,
    CrashLoop,
    FunctionNotFound,
    StokerError,
    Unavailable,
)
from stoker.placement.records import Assignment, FunctionDemand, FunctionRecord, PlaceAnswer
from stoker.placement.view import Snapshot

# Placement was just asked and gave nothing free: it knows of the queue and reports tell it more.
ASK_AGAIN_SECONDS = 1.0
# A refused connection says that the instance is dead, a slow one only that it is busy.
DROPPED_SECONDS = 10.0
# A lost connection may be one request's fault; a dead instance is announced well within this.
LOST_SECONDS = 0.5
# Of the calls that wait, so many are named to placement.
CALL_IDS_MAXIMUM = 64
# How long an answer of placement counts before the view shows it.
ASSIGNED_SECONDS = 5.0
# What the newest request says of the next ones.
NEWEST_SHARE = 0.1

_log = structlog.get_logger()


class Placer(Protocol):
    """What the router needs of placement."""

    def place(
        self,
        function_key: str,
        demand: Callable[[], FunctionDemand],
        call_ids: Callable[[], tuple[str, ...]],
    ) -> Awaitable[PlaceAnswer]: ...


@dataclass(slots=True)
class Slot:
    """The right to have one request in flight at `target`; to be released once.

    `prefill_seconds` is what the instance said of the request's prefill, 0 if nothing.
    """

    function: str
    target: Target
    queue_seconds: float = 0.0
    place_seconds: float = 0.0
    prefill_seconds: float = 0.0


@dataclass(slots=True, eq=False)
class _Waiter:
    future: asyncio.Future[Slot]
    call_id: str
    arrived_at: float
    placing_before: float
    tokens: int


@dataclass(slots=True)
class _State:
    """What this gateway knows of one function beyond the snapshot. Times are monotonic."""

    ended_at: float
    called_version: int = -1
    requests: int = 0
    in_flight: dict[str, int] = field(default_factory=dict)
    queue: deque[_Waiter] = field(default_factory=deque)
    assigned: dict[str, tuple[Assignment, float]] = field(default_factory=dict)
    dropped: dict[str, float] = field(default_factory=dict)
    asking: asyncio.Task[None] | None = None
    asking_since: float = 0.0
    asked_seconds: float = 0.0
    ask_not_before: float = 0.0
    known: frozenset[Target] = frozenset()
    request_seconds: float = 1.0
    prefill_seconds: float = 0.0
    measured: bool = False

    def placing_seconds(self, now: float) -> float:
        """Seconds until `now` in which placement was being asked, of all time."""
        return self.asked_seconds + (now - self.asking_since if self.asking else 0.0)


class Router:
    """Dispatches requests. `snapshot` must cost nothing: it is read for every request."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        placer: Placer,
        queue_seconds_maximum: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._snapshot = snapshot
        self._placer = placer
        self._queue_seconds_maximum = queue_seconds_maximum
        self._clock = clock
        self._states: dict[str, _State] = {}
        # What one snapshot says by itself, found out once for each function, not for each request.
        self._listed_in: Snapshot | None = None
        self._listed: dict[str, dict[str, Target]] = {}

    async def acquire(
        self, function: FunctionRecord, call_id: str = "", *, again: bool = False, tokens: int = 0
    ) -> Slot:
        """A slot, at once or after queueing; QueueFull, Unavailable or placement's error.

        Placement is told the `call_id` of who waits. `again` is for a request whose instance was
        gone: it keeps its place before the others. `tokens` is about how many its prompt has, 0
        where there is none.
        """
        state = self._states.setdefault(function.key, _State(self._clock()))
        state.called_version = self._snapshot().function_versions.get(function.key, -1)
        state.requests += not again
        if again or not state.queue:
            target = choose(
                self._targets(function.key, state).values(),
                state.in_flight,
                function.scaling.concurrency,
            )
            if target is not None:
                return self._take(function.key, state, target)
        if state.queue and len(state.queue) >= self._queue_maximum(function, state):
            after = self._drain_seconds(state, function.scaling.concurrency)
            raise queue_full(function, len(state.queue), after)
        return await self._wait(function.key, state, call_id, again, tokens)

    def release(self, slot: Slot, request_seconds: float | None = None) -> None:
        """Give the slot back; `request_seconds` teaches how long requests take, and the slot's
        prefill how long a first token, unless the instance still started when it was dispatched.
        """
        state = self._states[slot.function]
        left = state.in_flight[slot.target.instance_id] - 1
        if left:
            state.in_flight[slot.target.instance_id] = left
        else:
            del state.in_flight[slot.target.instance_id]
        state.ended_at = self._clock()
        if request_seconds is not None and slot.target.serving:
            share = NEWEST_SHARE if state.measured else 1.0
            state.request_seconds += share * (request_seconds - state.request_seconds)
            state.measured = True
            if slot.prefill_seconds:
                share = NEWEST_SHARE if state.prefill_seconds else 1.0
                state.prefill_seconds += share * (slot.prefill_seconds - state.prefill_seconds)
        self._dispatch(slot.function, state)

    def drop(self, slot: Slot, seconds: float = DROPPED_SECONDS) -> None:
        """Send nothing to this instance for `seconds`: it did not take or keep a connection."""
        state = self._states[slot.function]
        state.dropped[slot.target.instance_id] = self._clock() + seconds
        state.assigned.pop(slot.target.instance_id, None)
        state.ask_not_before = 0.0
        _log.warning(
            "instance_dropped",
            function=slot.function,
            instance=slot.target.instance_id,
            address=slot.target.address,
        )

    def refresh(self) -> None:
        """Look at every queue again: the snapshot changed, or time has passed."""
        functions = self._snapshot().functions
        for key, state in list(self._states.items()):
            if state.queue:
                self._dispatch(key, state)
            elif key not in functions and not state.in_flight and not state.asking:
                del self._states[key]

    def demand(self) -> dict[str, FunctionDemand]:
        """What every function that was ever called here, and still exists, asks for now."""
        functions = self._snapshot().functions
        return {k: self._demand_of(s) for k, s in self._states.items() if k in functions}

    def in_flight(self, function_key: str, instance_id: str) -> int:
        state = self._states.get(function_key)
        return state.in_flight.get(instance_id, 0) if state else 0

    def close(self) -> None:
        for state in self._states.values():
            if state.asking is not None:
                state.asking.cancel()

    def _demand_of(self, state: _State) -> FunctionDemand:
        in_flight, queued, now = sum(state.in_flight.values()), len(state.queue), self._clock()
        busy = in_flight or queued
        idle_seconds = 0.0 if busy else max(0.0, now - state.ended_at)
        return FunctionDemand(
            in_flight,
            queued,
            idle_seconds,
            state.called_version,
            state.requests,
            sum(waiter.tokens for waiter in state.queue),
            state.request_seconds if state.measured else 0.0,
            state.prefill_seconds,
            tuple(state.in_flight),
            now - min((waiter.arrived_at for waiter in state.queue), default=now),
        )

    def _targets(self, key: str, state: _State) -> Mapping[str, Target]:
        snapshot = self._snapshot()
        if self._listed_in is not snapshot:
            self._listed_in, self._listed = snapshot, {}
        if not state.assigned and not state.dropped:
            listed = self._listed.get(key)
            if listed is None:
                listed = self._listed[key] = targets(snapshot, key, ())
            return listed
        now = self._clock()
        for instance_id, (_, until) in list(state.assigned.items()):
            if instance_id in snapshot.assignments or until <= now:
                del state.assigned[instance_id]
        found = targets(snapshot, key, (a for a, _ in state.assigned.values()))
        for instance_id, until in list(state.dropped.items()):
            if until <= now:
                del state.dropped[instance_id]
            else:
                found.pop(instance_id, None)
        return found

    def _take(self, key: str, state: _State, target: Target) -> Slot:
        state.in_flight[target.instance_id] = state.in_flight.get(target.instance_id, 0) + 1
        return Slot(key, target)

    async def _wait(self, key: str, state: _State, call_id: str, again: bool, tokens: int) -> Slot:
        now = self._clock()
        future: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(future, call_id, now, state.placing_seconds(now), tokens)
        if again:
            state.queue.appendleft(waiter)
        else:
            state.queue.append(waiter)
        self._dispatch(key, state)
        taken = False
        try:
            async with asyncio.timeout(self._queue_seconds_maximum):
                slot = await future
            taken = True
        except TimeoutError:
            raise Unavailable(
                f"{key} had no free instance within {self._queue_seconds_maximum:g} s.",
                "Raise com.openfaas.scale.max, or send fewer requests at once.",
                retry_after_seconds=self._drain_seconds(state, 1),
            ) from None
        finally:
            if not taken:
                self._withdraw(waiter, state)
        return slot

    def _withdraw(self, waiter: _Waiter, state: _State) -> None:
        if waiter in state.queue:
            state.queue.remove(waiter)
        elif _holds_slot(waiter.future):
            # It was given a slot in the moment in which its client left.
            self.release(waiter.future.result())
        waiter.future.cancel()
        if not state.queue:
            state.ended_at = self._clock()

    def _dispatch(self, key: str, state: _State) -> None:
        """Give free slots to those who wait, and ask placement for those who go on waiting."""
        if not state.queue:
            return
        function = self._snapshot().functions.get(key)
        if function is None:
            self._fail(state, _gone(key))
            return
        candidates = self._targets(key, state)
        known = frozenset(candidates.values())
        if known != state.known:
            state.known, state.ask_not_before = known, 0.0
        while state.queue:
            target = choose(known, state.in_flight, function.scaling.concurrency)
            if target is None:
                break
            waiter = state.queue.popleft()
            if not waiter.future.done():
                self._hand_over(key, state, waiter, target)
        if state.queue and state.asking is None and self._clock() >= state.ask_not_before:
            state.asking_since = self._clock()
            state.asking = asyncio.create_task(self._ask(key, state))

    def _hand_over(self, key: str, state: _State, waiter: _Waiter, target: Target) -> None:
        slot, now = self._take(key, state, target), self._clock()
        waited = now - waiter.arrived_at
        slot.place_seconds = min(waited, state.placing_seconds(now) - waiter.placing_before)
        slot.queue_seconds = waited - slot.place_seconds
        waiter.future.set_result(slot)

    async def _ask(self, key: str, state: _State) -> None:
        """One question to placement; its assignments count at once."""
        failure: StokerError | None = None
        try:
            answer = await self._placer.place(
                key, lambda: self._demand_of(state), lambda: _call_ids(state)
            )
            until = self._clock() + ASSIGNED_SECONDS
            for assignment in answer.assignments:
                if assignment.instance_id not in state.dropped:
                    state.assigned[assignment.instance_id] = (assignment, until)
        except StokerError as error:
            failure = error
        finally:
            now = self._clock()
            self._settle(key, state, failure, now)

    def _settle(self, key: str, state: _State, failure: StokerError | None, now: float) -> None:
        if failure is not None and not self._targets(key, state):
            self._fail(state, failure)
        state.known = frozenset(self._targets(key, state).values())
        # Where nothing will start, whoever comes next is to be refused at once as well.
        given_up = isinstance(failure, CrashLoop | CoordinationLost)
        state.ask_not_before = now if given_up else now + ASK_AGAIN_SECONDS
        # Handed over first, so that those who waited for this answer count it as placing.
        self._dispatch(key, state)
        state.asked_seconds += now - state.asking_since
        state.asking = None

    def _fail(self, state: _State, error: StokerError) -> None:
        while state.queue:
            waiter = state.queue.popleft()
            if not waiter.future.done():
                # One error object for each, for every raise adds its traceback to it.
                waiter.future.set_exception(StokerError.from_wire(error.to_wire()))

    def _queue_maximum(self, function: FunctionRecord, state: _State) -> int:
        stated = function.scaling.queue_per_instance is not None
        known = self._targets(function.key, state).values() if stated else ()
        serving = sum(target.serving for target in known)
        return queue_length_maximum(function, serving)

    def _drain_seconds(self, state: _State, concurrency: int) -> float:
        slots = max(1, len(state.known) * concurrency)
        return state.request_seconds * len(state.queue) / slots


def _call_ids(state: _State) -> tuple[str, ...]:
    first = itertools.islice(state.queue, CALL_IDS_MAXIMUM)
    return tuple(waiter.call_id for waiter in first if waiter.call_id)


def _holds_slot(future: asyncio.Future[Slot]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _gone(key: str) -> FunctionNotFound:
    return FunctionNotFound(f"The function {key} was removed.", "Deploy it again.")
