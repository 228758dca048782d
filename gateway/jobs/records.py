"""What stands in the queue: a job, what its run came to, and what is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

State = Literal["waiting", "running", "done", "dead", "cancelled"]
STATES: tuple[State, ...] = ("waiting", "running", "done", "dead", "cancelled")
ENDED: tuple[State, ...] = ("done", "cancelled", "dead")


@dataclass(frozen=True, slots=True)
class Job:
    """Work to be done; `id` is its own within `queue`, `key` says for whom it is.

    Two jobs of one id are the same if key and `fingerprint` are. `head` is a JSON object for
    whoever does the work.
    """

    queue: str
    id: str
    key: str
    head: Mapping[str, Any]
    body: bytes = b""
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Leased:
    """A job that this process runs now. `runs` counts this one too."""

    queue: str
    id: str
    key: str
    head: Mapping[str, Any]
    runs: int
    created_at: float
    body_bytes: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to: the answer's status and headers, or the platform's own error.

    `seconds` is how long the run took.
    """

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0
    error: Mapping[str, Any] | None = None

    def encode(self) -> bytes:
        return orjson.dumps([self.status, self.headers, self.seconds, self.error])

    @staticmethod
    def decode(value: bytes) -> Outcome:
        status, headers, seconds, error = orjson.loads(value)
        return Outcome(status, tuple((name, text) for name, text in headers), seconds, error)


@dataclass(frozen=True, slots=True)
class Ended:
    """The last word on a job: its state, outcome and result, and a job that follows from it."""

    state: Literal["done", "dead", "cancelled"]
    outcome: Outcome
    result: bytes = b""
    then: Job | None = None


@dataclass(frozen=True, slots=True)
class Again:
    """The job is to run again in `seconds`; `counted` unless this was no run at all."""

    seconds: float
    counted: bool
    outcome: Outcome


Verdict = Ended | Again


@dataclass(frozen=True, slots=True)
class JobStatus:
    """What is told of a job; times in seconds since the epoch."""

    queue: str
    id: str
    key: str
    state: State
    runs: int
    interruptions: int
    created_at: float
    due_at: float
    started_at: float | None
    ended_at: float | None
    body_bytes: int
    result_bytes: int
    outcome: Outcome | None


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much a queue takes, and how much and how long of what has ended is kept."""

    jobs_maximum: int = 10_000
    bytes_maximum: int = 1 << 30
    kept_jobs_maximum: int = 100_000
    kept_bytes_maximum: int = 1 << 30
    kept_seconds: float = 86_400.0
    dead_kept_seconds: float = 7 * 86_400.0
