"""The queue itself, as SQL: every method is part of a transaction of its caller (`store`).

    (none) ── accept ──> waiting ── claim ──> running ── finish ──> done | dead | cancelled
                            ^                  │  │                    │
                            ├──── put back ────┘  │  its process died  └─ retry (the dead)
                            └─────────────────────┘

Invariants: a running job has a lease, and only who holds it ends the run; an outcome is written
once; what has ended is never claimed; totals are those of the rows.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

import orjson

from stoker.gateway.jobs.records import (
    ENDED,
    Again,
    Bounds,
    Ended,
    Job,
    JobStatus,
    Leased,
    Outcome,
    State,
)
from stoker.placement.errors import Conflict, NotFound, QueueFull

FULL_RETRY_SECONDS = 10.0
# What one transaction removes at most, so that none takes long.
REMOVED_MAXIMUM = 1000
_CANCELLED = Outcome(0, error={"code": "cancelled", "cause": "The job was cancelled."})
_STATUS = (
    "queue, id, key, state, runs, interruptions, created_at, due_at, started_at, ended_at,"
    " body_bytes, result_bytes, outcome"
)

# Jobs and bytes of one queue that are still to end, and of all that have ended.
_TAKEN = (
    "SELECT total(jobs), total(bytes) FROM totals"
    " WHERE queue = ? AND state IN ('waiting', 'running')"
)
_KEPT = "SELECT total(jobs), total(bytes) FROM totals WHERE state IN ('done', 'cancelled', 'dead')"
_OLDEST = (
    "SELECT bytes, ended_at FROM jobs WHERE state = ? AND ended_at IS NOT NULL"
    " ORDER BY ended_at LIMIT ?"
)


@dataclass(frozen=True, slots=True)
class Claimed:
    """What was leased, which running jobs are to be cancelled, and when the next one is due."""

    jobs: tuple[Leased, ...]
    to_cancel: frozenset[str]
    next_due_at: float


@dataclass(frozen=True, slots=True)
class Depth:
    """Jobs by state, and since when the job that waits longest has been due (None: none is)."""

    jobs: dict[State, int]
    due_since: float | None


class JobQueue:
    """`news` is set when something was written that other processes should look at."""

    def __init__(self, db: sqlite3.Connection, bounds: Bounds) -> None:
        self._db = db
        self._bounds = bounds
        self.news = False

    def accept(self, job: Job, now: float) -> bool:
        """Add the job; False if it is there already. Conflict for another one of its id, QueueFull.

        What has ended counts as there for as long as it is kept.
        """
        query = "SELECT key, fingerprint FROM jobs WHERE queue = ? AND id = ?"
        present = self._db.execute(query, (job.queue, job.id)).fetchone()
        if present is not None:
            if tuple(present) != (job.key, job.fingerprint):
                raise Conflict(
                    f"Expected {job.id!r:.140} to name one job, found that it names another one "
                    f"of {present[0]:.140}.",
                    "Send each new request with an X-Call-Id of its own.",
                )
            return False
        waiting, waiting_bytes = self._total(_TAKEN, job.queue)
        if waiting >= self._bounds.jobs_maximum or (
            waiting_bytes + len(job.body) > self._bounds.bytes_maximum
        ):
            raise QueueFull(
                f"The queue holds {waiting} jobs of {waiting_bytes} bytes, as many as it may.",
                "Send the request again later.",
                retry_after_seconds=FULL_RETRY_SECONDS,
            )
        self._add(job, now)
        return True

    def claim(
        self, queue: str, lease: str, room: int, room_of: Callable[[str], int], now: float
    ) -> Claimed:
        """Lease what is due to this process, longest due first: `room` jobs, `room_of(key)` each.

        `next_due_at` leaves out keys without room: whose job ends looks again.
        """
        query = "SELECT key FROM totals WHERE queue = ? AND state = 'waiting' AND jobs > 0"
        due: list[tuple[float, str]] = []
        next_due_at = math.inf
        for (key,) in self._db.execute(query, (queue,)).fetchall() if room > 0 else ():
            rows = self._db.execute(
                "SELECT due_at, id FROM jobs WHERE queue = ? AND key = ? AND state = 'waiting'"
                " ORDER BY due_at LIMIT ?",
                (queue, key, max(0, min(room, room_of(key)))),
            ).fetchall()
            due += [(at, name) for at, name in rows if at <= now]
            next_due_at = min([next_due_at, *(at for at, _ in rows if at > now)])
        chosen = [self._lease(queue, name, lease, now) for _, name in sorted(due)[:room]]
        query = "SELECT id FROM jobs WHERE lease = ? AND queue = ? AND to_cancel = 1"
        to_cancel = frozenset(name for (name,) in self._db.execute(query, (lease, queue)))
        return Claimed(tuple(chosen), to_cancel, next_due_at)

    def finish(self, job: Leased, lease: str, ended: Ended, now: float) -> bool:
        """Record the last word on a running job; False if its lease is another's by now."""
        outcome = ended.outcome.encode()
        kept = len(outcome) + len(ended.result)
        kept += job.body_bytes if ended.state == "dead" else 0
        changed = self._db.execute(
            "UPDATE jobs SET state = ?, outcome = ?, ended_at = ?, result_bytes = ?, lease = NULL,"
            " bytes = length(head) + ? WHERE queue = ? AND id = ? AND lease = ?",
            (ended.state, outcome, now, len(ended.result), kept, job.queue, job.id, lease),
        ).rowcount
        if not changed:
            return False
        if ended.state != "dead":
            self._remove_body(job.queue, job.id, "request")
        if ended.result:
            self._add_body(job.queue, job.id, "result", ended.result)
        if ended.then is not None:
            # A dead job that was retried has ended before, and may have one from then.
            where = (ended.then.queue, ended.then.id)
            self._db.execute("DELETE FROM jobs WHERE queue = ? AND id = ?", where)
            self._add(ended.then, now)
        self._trim()
        return True

    def put_back(self, job: Leased, lease: str, again: Again, now: float) -> bool:
        """Let the job run again later; False if its lease is another's by now."""
        where = (job.queue, job.id, lease)
        query = "SELECT to_cancel FROM jobs WHERE queue = ? AND id = ? AND lease = ?"
        row = self._db.execute(query, where).fetchone()
        if row is None:
            return False
        if row[0]:
            return self.finish(job, lease, Ended("cancelled", again.outcome), now)
        self._db.execute(
            "UPDATE jobs SET state = 'waiting', lease = NULL, due_at = ?, runs = runs - ?,"
            " outcome = ? WHERE queue = ? AND id = ? AND lease = ?",
            (now + again.seconds, int(not again.counted), again.outcome.encode(), *where),
        )
        self.news = True
        return True

    def reap(self, lease: str, now: float) -> int:
        """Give back what a process that is gone had running; how much that was."""
        rows = self._db.execute(
            "SELECT queue, id FROM jobs WHERE lease = ? AND to_cancel = 1", (lease,)
        ).fetchall()
        for queue, name in rows:
            self._end_cancelled(queue, name, now)
        changed = self._db.execute(
            "UPDATE jobs SET state = 'waiting', lease = NULL, due_at = ?,"
            " interruptions = interruptions + 1 WHERE lease = ?",
            (now, lease),
        ).rowcount
        self.news = self.news or changed > 0
        return len(rows) + changed

    def leases(self) -> set[str]:
        query = "SELECT DISTINCT lease FROM jobs WHERE lease IS NOT NULL"
        return {lease for (lease,) in self._db.execute(query)}

    def cancel(self, queue: str, name: str, now: float) -> None:
        """End the job, or have its process end it; NotFound, Conflict if it has an outcome."""
        state = self.status(queue, name).state
        if state in ("done", "dead"):
            raise Conflict(
                f"Expected a job that is not over, found {name!r:.140} {state}.",
                "Nothing of it is left to cancel.",
            )
        if state == "waiting":
            self._end_cancelled(queue, name, now)
        elif state == "running":
            query = "UPDATE jobs SET to_cancel = 1 WHERE queue = ? AND id = ?"
            self._db.execute(query, (queue, name))
            self.news = True

    def retry(self, queue: str, name: str, now: float) -> None:
        """Let a dead job run again, with all its runs before it; NotFound, Conflict."""
        found = self.status(queue, name)
        if found.state != "dead":
            raise Conflict(
                f"Expected a dead job, found {name!r:.140} {found.state}.",
                "Only what has failed for good can be retried.",
            )
        self._remove_body(queue, name, "result")
        self._db.execute(
            "UPDATE jobs SET state = 'waiting', runs = 0, created_at = ?, due_at = ?,"
            " ended_at = NULL, outcome = NULL, result_bytes = 0,"
            " bytes = length(head) + body_bytes WHERE queue = ? AND id = ?",
            (now, now, queue, name),
        )
        self.news = True

    def body(self, queue: str, name: str, part: str) -> bytes:
        """The `request` or `result` of a job; empty if it has none."""
        query = "SELECT content FROM bodies WHERE queue = ? AND id = ? AND part = ?"
        row = self._db.execute(query, (queue, name, part)).fetchone()
        return bytes(row[0]) if row else b""

    def head(self, queue: str, name: str) -> dict[str, object]:
        query = "SELECT head FROM jobs WHERE queue = ? AND id = ?"
        row = self._db.execute(query, (queue, name)).fetchone()
        if row is None:
            raise _missing(name)
        found: dict[str, object] = orjson.loads(row[0])
        return found

    def status(self, queue: str, name: str) -> JobStatus:
        """What is told of a job; NotFound."""
        query = f"SELECT {_STATUS} FROM jobs WHERE queue = ? AND id = ?"  # noqa: S608 - our columns
        row = self._db.execute(query, (queue, name)).fetchone()
        if row is None:
            raise _missing(name)
        return _status(row)

    def list(self, queue: str, state: str, key: str, limit: int) -> list[JobStatus]:
        """The newest `limit` jobs, of a state and of a key unless these are empty."""
        rows = self._db.execute(
            f"SELECT {_STATUS} FROM jobs WHERE queue = ? AND (? = '' OR state = ?)"  # noqa: S608
            " AND (? = '' OR key = ?) ORDER BY rowid DESC LIMIT ?",
            (queue, state, state, key, key, limit),
        )
        return [_status(row) for row in rows]

    def depth(self, queue: str, now: float) -> Depth:
        rows = self._db.execute(
            "SELECT state, sum(jobs) FROM totals WHERE queue = ? GROUP BY state", (queue,)
        )
        jobs = dict(rows.fetchall())
        (since,) = self._db.execute(
            "SELECT min(due_at) FROM jobs WHERE queue = ? AND state = 'waiting'", (queue,)
        ).fetchone()
        return Depth(jobs, since if since is not None and since <= now else None)

    def expire(self, now: float) -> float:
        """Remove what was kept long enough; when there will be something to remove again."""
        next_at = math.inf
        for state in ENDED:
            dead = state == "dead"
            kept = self._bounds.dead_kept_seconds if dead else self._bounds.kept_seconds
            self._remove_oldest(state, now - kept, REMOVED_MAXIMUM)
            query = "SELECT min(ended_at) FROM jobs WHERE state = ? AND ended_at IS NOT NULL"
            (oldest,) = self._db.execute(query, (state,)).fetchone()
            if oldest is not None:
                next_at = min(next_at, oldest + kept)
        self._db.execute("DELETE FROM totals WHERE jobs = 0")
        return next_at

    def _trim(self) -> None:
        """Remove the oldest of what has ended while there is too much, the dead last."""
        bounds = self._bounds
        for state in ENDED:
            jobs, kept_bytes = self._total(_KEPT)
            if jobs <= bounds.kept_jobs_maximum and kept_bytes <= bounds.kept_bytes_maximum:
                return
            # A tenth more than must go, so that not every job that ends removes one.
            spare_jobs = jobs - bounds.kept_jobs_maximum * 9 // 10
            spare_bytes = kept_bytes - bounds.kept_bytes_maximum * 9 // 10
            removed, until = 0, 0.0
            for job_bytes, ended_at in self._db.execute(_OLDEST, (state, REMOVED_MAXIMUM)):
                if spare_jobs <= 0 and spare_bytes <= 0:
                    break
                spare_jobs, spare_bytes = spare_jobs - 1, spare_bytes - job_bytes
                removed, until = removed + 1, ended_at
            self._remove_oldest(state, until, removed)

    def _remove_oldest(self, state: State, until: float, jobs_maximum: int) -> None:
        self._db.execute(
            "DELETE FROM jobs WHERE rowid IN (SELECT rowid FROM jobs WHERE state = ? AND"
            " ended_at <= ? ORDER BY ended_at LIMIT ?)",
            (state, until, jobs_maximum),
        )

    def _add(self, job: Job, now: float) -> None:
        head = orjson.dumps(job.head)
        self._db.execute(
            "INSERT INTO jobs (queue, id, key, state, head, fingerprint, created_at, due_at,"
            " body_bytes, bytes) VALUES (?, ?, ?, 'waiting', ?, ?, ?, ?, ?, ?)",
            (
                *(job.queue, job.id, job.key, head, job.fingerprint, now, now),
                *(len(job.body), len(head) + len(job.body)),
            ),
        )
        if job.body:
            self._add_body(job.queue, job.id, "request", job.body)
        self.news = True

    def _lease(self, queue: str, name: str, lease: str, now: float) -> Leased:
        key, head, runs, created_at, body_bytes = self._db.execute(
            "UPDATE jobs SET state = 'running', lease = ?, runs = runs + 1, started_at = ?"
            " WHERE queue = ? AND id = ? RETURNING key, head, runs, created_at, body_bytes",
            (lease, now, queue, name),
        ).fetchall()[0]
        return Leased(queue, name, key, orjson.loads(head), runs, created_at, body_bytes)

    def _end_cancelled(self, queue: str, name: str, now: float) -> None:
        outcome = _CANCELLED.encode()
        self._db.execute(
            "UPDATE jobs SET state = 'cancelled', ended_at = ?, lease = NULL, outcome = ?,"
            " bytes = length(head) + ? WHERE queue = ? AND id = ?",
            (now, outcome, len(outcome), queue, name),
        )
        self._remove_body(queue, name, "request")
        self._trim()

    def _add_body(self, queue: str, name: str, part: str, content: bytes) -> None:
        query = "INSERT OR REPLACE INTO bodies VALUES (?, ?, ?, ?)"
        self._db.execute(query, (queue, name, part, content))

    def _remove_body(self, queue: str, name: str, part: str) -> None:
        query = "DELETE FROM bodies WHERE queue = ? AND id = ? AND part = ?"
        self._db.execute(query, (queue, name, part))

    def _total(self, query: str, *parameters: str) -> tuple[int, int]:
        jobs, total_bytes = self._db.execute(query, parameters).fetchone()
        return int(jobs), int(total_bytes)


def _status(row: tuple[object, ...]) -> JobStatus:
    *fields, outcome = row
    decoded = Outcome.decode(outcome) if isinstance(outcome, bytes) else None
    return JobStatus(*fields, decoded)  # type: ignore[arg-type, call-arg]  # the columns of _STATUS


def _missing(name: str) -> NotFound:
    return NotFound(
        f"Expected a job {name!r:.140}, found none.",
        "It was never accepted, or what was kept of it has expired; see `stoker jobs ls`.",
    )
