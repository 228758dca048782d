"""What a simulation moves: requests, functions and instances."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace

from stoker.placement.records import Assignment, FunctionRecord
from stoker.placement.simulate_world import SimulatedNode


class Request:
    """One request. Seconds that it runs: `prompt_seconds`, then one token each `token_seconds`."""

    __slots__ = (
        "arrived_at",
        "begun_at",
        "epoch",
        "function",
        "left_seconds",
        "moved",
        "number",
        "output_tokens",
        "preempted",
        "prompt_tokens",
        "queued_at",
        "tier",
        "waited",
    )

    def __init__(
        self,
        number: int,
        function: Function,
        arrived_at: float,
        prompt_tokens: int,
        output_tokens: int,
        seconds: float,
    ) -> None:
        self.number = number
        self.function = function
        self.arrived_at = arrived_at
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.left_seconds = seconds
        self.begun_at = self.queued_at = arrived_at
        # Seconds until it first ran, and of every pause since.
        self.waited = 0.0
        # An end that was foreseen before the last pause is void.
        self.epoch = 0
        self.tier = ""
        self.moved = self.preempted = 0

    def arrive_later(self, seconds: float) -> None:
        self.arrived_at += seconds
        self.begun_at = self.queued_at = self.arrived_at

    def tokens(self, now: float) -> int:
        """Of the prompt and generated until now."""
        token_seconds = self.function.token_seconds
        if token_seconds <= 0:
            return self.prompt_tokens
        left = max(0.0, self.left_seconds - max(0.0, now - self.begun_at))
        return self.prompt_tokens + max(0, self.output_tokens - int(left / token_seconds))

    def generated(self, seconds: float) -> int:
        """About how many tokens come in so many seconds."""
        token_seconds = self.function.token_seconds
        return int(seconds / token_seconds) if token_seconds > 0 else 0


class Instance:
    """`state` is waiting (for its place), loading, serving or gone."""

    __slots__ = (
        "assignment",
        "blockers",
        "expected_at",
        "function",
        "heir",
        "leaving",
        "node",
        "placed_at",
        "predecessor",
        "ready_at",
        "running",
        "state",
        "tier",
    )

    def __init__(
        self, assignment: Assignment, function: Function, node: SimulatedNode, now: float
    ) -> None:
        self.assignment = assignment
        self.placed_at = now
        self.ready_at = self.expected_at = math.inf
        self.function = function
        self.node = node
        self.state = "waiting"
        self.tier = "dram"
        self.running: dict[int, Request] = {}
        # Whose end this one waits for; who waits for this one's end; whose requests it takes over.
        self.blockers: set[str] = set()
        self.heir: Instance | None = None
        self.predecessor: Instance | None = None
        # It ends after what it runs, and nobody takes that over.
        self.leaving = False

    @property
    def instance_id(self) -> str:
        return self.assignment.instance_id


class Function:
    __slots__ = (
        "checking_at",
        "heard_at",
        "idle_since",
        "in_flight",
        "instances",
        "leaving",
        "prompt_token_seconds",
        "queue",
        "record",
        "start_seconds",
        "token_seconds",
    )

    def __init__(self, record: FunctionRecord) -> None:
        self.record = record
        self.prompt_token_seconds = self.token_seconds = 0.0
        self.queue: deque[Request] = deque()
        self.instances: list[Instance] = []
        self.in_flight = 0
        self.leaving = 0
        self.idle_since = -math.inf
        self.checking_at = math.inf
        self.heard_at = -math.inf
        # As learnt: how long its last start took.
        self.start_seconds = 0.0

    @property
    def existing(self) -> int:
        """The instances, those included that only end what they run."""
        return len(self.instances) + self.leaving

    def keep(self, idle_seconds: float) -> None:
        """Say how long its idle instances stay."""
        scaling = replace(self.record.scaling, idle_seconds=idle_seconds)
        self.record = replace(self.record, scaling=scaling)
