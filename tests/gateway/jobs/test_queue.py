"""The queue's rules, on a real database in memory; time is passed in."""

from __future__ import annotations

import contextlib
import math
import random
import sqlite3
from collections.abc import Iterator

import pytest

from stoker.gateway.jobs.queue import JobQueue
from stoker.gateway.jobs.records import Again, Bounds, Ended, Job, Leased, Outcome
from stoker.gateway.jobs.schema import SCHEMA
from stoker.placement.errors import Conflict, NotFound, QueueFull

OK = Outcome(200, (("content-type", "text/plain"),), 0.5)


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    made = sqlite3.connect(":memory:", isolation_level=None)
    made.executescript(SCHEMA)
    yield made
    made.close()


@pytest.fixture
def queue(db: sqlite3.Connection) -> JobQueue:
    return JobQueue(db, Bounds(jobs_maximum=20, bytes_maximum=10_000))


def job(name: str, key: str = "f.ns", body: bytes = b"body", fingerprint: str = "") -> Job:
    return Job("invoke", name, key, {"path": "/"}, body, fingerprint)


def claim(queue: JobQueue, lease: str = "me", room: int = 100, now: float = 10.0) -> list[Leased]:
    return list(queue.claim("invoke", lease, room, lambda key: room, now).jobs)


def test_a_job_that_is_accepted_is_claimed_once_and_ends_once(queue: JobQueue) -> None:
    assert queue.accept(job("a"), 1.0)
    assert queue.news

    (leased,) = claim(queue)
    assert (leased.id, leased.key, leased.head, leased.runs) == ("a", "f.ns", {"path": "/"}, 1)
    assert claim(queue) == claim(queue, "other") == []
    assert queue.body("invoke", "a", "request") == b"body"
    assert queue.finish(leased, "me", Ended("done", OK, b"result"), 11.0)

    assert not queue.finish(leased, "me", Ended("dead", OK, b"again"), 12.0)
    assert not queue.put_back(leased, "me", Again(0.0, True, OK), 12.0)
    assert claim(queue, now=1e9) == []
    found = queue.status("invoke", "a")
    assert (found.state, found.runs, found.outcome, found.ended_at) == ("done", 1, OK, 11.0)
    assert queue.body("invoke", "a", "result") == b"result"
    assert queue.body("invoke", "a", "request") == b""


def test_the_same_id_is_one_job_for_as_long_as_it_is_kept(queue: JobQueue) -> None:
    assert queue.accept(job("a", fingerprint="x"), 1.0)
    assert not queue.accept(job("a", fingerprint="x"), 2.0)
    for other in (job("a", "g.ns", fingerprint="x"), job("a", fingerprint="y")):
        with pytest.raises(Conflict, match=r"f\.ns"):
            queue.accept(other, 2.0)

    (leased,) = claim(queue)
    queue.finish(leased, "me", Ended("done", OK), 11.0)
    assert not queue.accept(job("a", fingerprint="x"), 12.0)
    assert claim(queue) == []


def test_what_is_longest_due_comes_first_and_no_key_takes_more_than_its_room(
    queue: JobQueue,
) -> None:
    for number in range(6):
        queue.accept(job(f"busy-{number}", "busy.ns"), float(number))
    queue.accept(job("late", "other.ns"), 9.0)

    claimed = queue.claim("invoke", "me", 4, lambda key: 2, 10.0)

    assert [leased.id for leased in claimed.jobs] == ["busy-0", "busy-1", "late"]
    assert [leased.id for leased in claim(queue, room=1)] == ["busy-2"]
    assert queue.claim("invoke", "me", 4, lambda key: 0, 10.0).jobs == ()
    assert queue.claim("invoke", "me", 0, lambda key: 4, 10.0).jobs == ()


def test_a_job_that_is_to_run_again_says_when_it_is_due(queue: JobQueue) -> None:
    queue.accept(job("a"), 1.0)
    (leased,) = claim(queue)
    assert queue.put_back(leased, "me", Again(30.0, True, Outcome(503)), 10.0)

    claimed = queue.claim("invoke", "me", 1, lambda key: 1, 39.0)
    assert (claimed.jobs, claimed.next_due_at) == ((), 40.0)
    found = queue.status("invoke", "a")
    assert (found.state, found.outcome) == ("waiting", Outcome(503))
    (again,) = claim(queue, now=40.0)
    assert again.runs == 2
    # No run at all is not counted.
    queue.put_back(again, "me", Again(1.0, False, Outcome(503)), 41.0)
    (third,) = claim(queue, now=42.0)
    assert third.runs == 2
    assert queue.claim("invoke", "me", 9, lambda key: 9, 50.0).next_due_at == math.inf


def test_a_lease_that_is_gone_gives_its_jobs_back_and_can_end_none(queue: JobQueue) -> None:
    for name in ("a", "b"):
        queue.accept(job(name), 1.0)
    dead = claim(queue, "dead")
    assert queue.leases() == {"dead"}
    assert queue.reap("dead", 20.0) == 2
    assert queue.reap("dead", 20.0) == 0

    assert not queue.finish(dead[0], "dead", Ended("done", OK), 21.0)
    again = claim(queue, "me", now=21.0)
    assert [(leased.id, leased.runs) for leased in again] == [("a", 2), ("b", 2)]
    assert not queue.finish(dead[0], "dead", Ended("done", OK), 22.0)
    assert queue.status("invoke", "a").interruptions == 1


def test_a_job_is_cancelled_while_it_waits_and_while_it_runs(queue: JobQueue) -> None:
    queue.accept(job("waits"), 1.0)
    queue.cancel("invoke", "waits", 2.0)
    assert queue.status("invoke", "waits").state == "cancelled"
    queue.cancel("invoke", "waits", 3.0)

    queue.accept(job("runs"), 1.0)
    (leased,) = claim(queue)
    queue.cancel("invoke", "runs", 11.0)
    assert queue.claim("invoke", "me", 1, lambda key: 1, 11.0).to_cancel == {"runs"}
    assert queue.claim("invoke", "other", 1, lambda key: 1, 11.0).to_cancel == frozenset()
    queue.put_back(leased, "me", Again(1.0, True, OK), 12.0)
    assert queue.status("invoke", "runs").state == "cancelled"

    queue.accept(job("orphan"), 1.0)
    claim(queue, "dead")
    queue.cancel("invoke", "orphan", 11.0)
    queue.reap("dead", 12.0)
    assert queue.status("invoke", "orphan").state == "cancelled"
    assert claim(queue, now=1e9) == []
    with pytest.raises(NotFound):
        queue.cancel("invoke", "nobody", 1.0)


def test_an_outcome_brings_the_job_that_follows_from_it_in_the_same_breath(
    queue: JobQueue,
) -> None:
    queue.accept(job("a"), 1.0)
    (leased,) = claim(queue)
    follows = Job("callback", "a", "hooks.test", {"url": "http://hooks.test/"})
    queue.finish(leased, "me", Ended("dead", Outcome(500), b"why", follows), 11.0)

    (callback,) = queue.claim("callback", "me", 9, lambda key: 9, 11.0).jobs
    assert (callback.id, callback.head) == ("a", {"url": "http://hooks.test/"})
    assert claim(queue, now=1e9) == []


def test_what_failed_for_good_keeps_its_reason_and_can_run_again(queue: JobQueue) -> None:
    queue.accept(job("a"), 1.0)
    (leased,) = claim(queue)
    queue.finish(leased, "me", Ended("dead", Outcome(500), b"why"), 11.0)
    assert [found.id for found in queue.list("invoke", "dead", "", 10)] == ["a"]
    assert queue.body("invoke", "a", "result") == b"why"

    queue.retry("invoke", "a", 20.0)
    (again,) = claim(queue, now=20.0)
    assert (again.runs, queue.body("invoke", "a", "request")) == (1, b"body")
    queue.finish(again, "me", Ended("done", OK), 21.0)
    with pytest.raises(Conflict, match="done"):
        queue.retry("invoke", "a", 22.0)
    with pytest.raises(Conflict, match="done"):
        queue.cancel("invoke", "a", 22.0)


def test_a_full_queue_refuses_by_number_and_by_bytes(queue: JobQueue) -> None:
    with pytest.raises(QueueFull) as refused:
        queue.accept(job("large", body=b"x" * 10_001), 1.0)
    assert refused.value.retry_after_seconds
    for number in range(20):
        queue.accept(job(str(number)), 1.0)
    with pytest.raises(QueueFull, match="20 jobs"):
        queue.accept(job("more"), 1.0)
    # One that is there already is no new one.
    assert not queue.accept(job("0"), 1.0)

    queue.finish(claim(queue, room=1)[0], "me", Ended("done", OK), 11.0)
    assert queue.accept(job("more"), 12.0)


def test_what_has_ended_is_removed_after_its_time(db: sqlite3.Connection) -> None:
    queue = JobQueue(db, Bounds(kept_seconds=100.0, dead_kept_seconds=200.0))
    for name, state in (("done", "done"), ("dead", "dead")):
        queue.accept(job(name), 1.0)
        (leased,) = claim(queue)
        queue.finish(leased, "me", Ended(state, OK, b"result"), 1000.0)  # type: ignore[arg-type]
    queue.accept(job("waits"), 1.0)

    assert queue.expire(1050.0) == 1100.0
    assert queue.expire(1100.0) == 1200.0
    with pytest.raises(NotFound):
        queue.status("invoke", "done")
    assert queue.status("invoke", "dead").state == "dead"
    assert queue.expire(1200.0) == math.inf
    assert [found.id for found in queue.list("invoke", "", "", 10)] == ["waits"]
    assert db.execute("SELECT DISTINCT id FROM bodies").fetchall() == [("waits",)]


def test_of_too_much_that_has_ended_the_oldest_goes_and_the_dead_last(
    db: sqlite3.Connection,
) -> None:
    queue = JobQueue(db, Bounds(kept_jobs_maximum=10, kept_bytes_maximum=2000))
    for number in range(30):
        queue.accept(job(str(number)), 1.0)
        (leased,) = claim(queue)
        state = "dead" if number < 3 else "done"
        queue.finish(leased, "me", Ended(state, OK, b"r" * 50), 100.0 + number)
        kept = [found.id for found in queue.list("invoke", "", "", 100)]
        assert len(kept) <= 10
        assert {"0", "1", "2"} & set(kept) == {str(n) for n in range(min(3, number + 1))}
    assert kept[0] == "29"
    queue.accept(job("large"), 1.0)
    (leased,) = claim(queue)
    queue.finish(leased, "me", Ended("done", OK, b"r" * 1500), 200.0)
    total = "SELECT sum(bytes) FROM jobs WHERE ended_at IS NOT NULL"
    assert db.execute(total).fetchone()[0] <= 2000


def test_depth_tells_jobs_by_state_and_since_when_one_could_have_run(queue: JobQueue) -> None:
    queue.accept(job("a"), 5.0)
    queue.accept(job("b", "g.ns"), 7.0)
    assert queue.depth("invoke", 10.0).due_since == 5.0
    (leased,) = claim(queue, room=1)
    queue.put_back(leased, "me", Again(100.0, True, OK), 10.0)
    found = queue.depth("invoke", 10.0)
    assert (found.jobs["waiting"], found.due_since) == (2, 7.0)
    assert queue.depth("callback", 10.0).due_since is None


def check_integrity(db: sqlite3.Connection) -> None:
    """The invariants at the head of the module, over every row."""
    counted = "SELECT queue, key, state, count(*), sum(bytes) FROM jobs GROUP BY 1, 2, 3"
    totals = "SELECT * FROM totals WHERE jobs != 0 ORDER BY 1, 2, 3"
    assert db.execute(totals).fetchall() == sorted(db.execute(counted).fetchall())
    assert not db.execute("SELECT 1 FROM totals WHERE jobs < 0 OR bytes < 0").fetchall()
    wrong = (
        "SELECT id FROM jobs WHERE (state = 'running') != (lease IS NOT NULL)"
        " OR (state IN ('done', 'dead', 'cancelled')) != (ended_at IS NOT NULL)"
    )
    assert db.execute(wrong).fetchall() == []
    sizes = (
        "SELECT id FROM jobs WHERE bytes != length(head) + ifnull((SELECT sum(length(content))"
        " FROM bodies b WHERE b.queue = jobs.queue AND b.id = jobs.id), 0)"
        " + iif(ended_at IS NULL, 0, length(outcome))"
    )
    assert db.execute(sizes).fetchall() == []


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_in_whatever_order_the_books_balance(
    db: sqlite3.Connection, seed: int
) -> None:
    draw = random.Random(seed)
    queue = JobQueue(db, Bounds(jobs_maximum=15, kept_jobs_maximum=10, kept_seconds=50.0))
    running: list[tuple[Leased, str]] = []
    ended: list[str] = []
    for step in range(600):
        now, name = float(step), str(draw.randrange(30))
        match draw.randrange(8):
            case 0 | 1:
                body = b"b" * draw.randrange(20)
                with_suppressed(lambda n=name, b=body, t=now: queue.accept(job(n, body=b), t))
            case 2:
                lease = draw.choice("xyz")
                running += [(leased, lease) for leased in claim(queue, lease, 2, now)]
            case 3 | 4 if running:
                leased, lease = running.pop(draw.randrange(len(running)))
                state = draw.choice(["done", "dead", "cancelled"])
                if queue.finish(leased, lease, Ended(state, OK, b"r" * draw.randrange(9)), now):
                    ended.append(leased.id)
            case 5 if running:
                leased, lease = running.pop(draw.randrange(len(running)))
                again = Again(draw.random() * 5, draw.random() < 0.5, OK)
                queue.put_back(leased, lease, again, now)
            case 6:
                queue.reap(draw.choice("xyz"), now)
            case _:
                act = draw.choice([queue.cancel, queue.retry])
                with_suppressed(lambda a=act, n=name, t=now: a("invoke", n, t))
                queue.expire(now)
        check_integrity(db)
    assert len(ended) > 20


def with_suppressed(act: object) -> None:
    with contextlib.suppress(Conflict, NotFound, QueueFull):
        act()  # type: ignore[operator]
