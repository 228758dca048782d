"""The store's thread and its neighbours: real files, real sockets, real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from harness.gateway import ROOT
from stoker.gateway.jobs import store
from stoker.gateway.jobs.queue import JobQueue
from stoker.gateway.jobs.records import Bounds, Job, Leased
from stoker.gateway.jobs.store import JobStore
from stoker.placement.errors import Conflict, StorageFull, Unavailable

# A process that leases every job, says so, and then hangs.
HOLDER = """
import asyncio, pathlib, sys, time
from stoker.gateway.jobs.records import Bounds
from stoker.gateway.jobs.store import JobStore

async def main():
    store = JobStore(pathlib.Path(sys.argv[1]), Bounds(), lambda: None, lambda count: None)
    claimed = await store.run(
        lambda queue: queue.claim("invoke", store.lease, 999, lambda key: 999, time.time())
    )
    sys.stdout.write(f"{len(claimed.jobs)}\\n")
    sys.stdout.flush()
    await asyncio.sleep(60)

asyncio.run(main())
"""


def job(name: str, body: bytes = b"body") -> Job:
    return Job("invoke", name, "f.ns", {}, body)


class Opened:
    """A store, and what it told."""

    def __init__(self, folder: Path) -> None:
        self.news = asyncio.Event()
        self.interrupted = 0
        self.store = JobStore(folder, Bounds(), self.news.set, self._count)

    def _count(self, count: int) -> None:
        self.interrupted += count

    async def accept(self, name: str, body: bytes = b"body") -> bool:
        return await self.store.run(lambda queue: queue.accept(job(name, body), time.time()))

    async def claim(self) -> list[Leased]:
        lease = self.store.lease
        claimed = await self.store.run(
            lambda queue: queue.claim("invoke", lease, 999, lambda key: 999, time.time())
        )
        return list(claimed.jobs)

    async def hear(self) -> None:
        async with asyncio.timeout(5):
            await self.news.wait()
        self.news.clear()


def test_what_was_accepted_is_there_after_the_store_is_opened_again(tmp_path: Path) -> None:
    async def main() -> None:
        first = Opened(tmp_path / "jobs")
        added = await asyncio.gather(*(first.accept(str(number)) for number in range(300)))
        assert added == [True] * 300
        with pytest.raises(Conflict):
            await first.store.run(lambda queue: queue.retry("invoke", "1", 0.0))
        await first.store.close()
        with pytest.raises(Unavailable):
            await first.accept("late")
        second = Opened(tmp_path / "jobs")
        assert len(await second.claim()) == 300
        await second.store.close()

    asyncio.run(main())
    assert stat.S_IMODE((tmp_path / "jobs" / "jobs.sqlite").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "jobs").stat().st_mode) == 0o700


def test_a_commit_is_synced_before_it_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        opened = Opened(tmp_path)

        def settings(queue: JobQueue) -> tuple[str, int]:
            db: sqlite3.Connection = queue._db
            (mode,) = db.execute("PRAGMA journal_mode").fetchone()
            (level,) = db.execute("PRAGMA synchronous").fetchone()
            return mode, level

        assert await opened.store.run(settings) == ("wal", 2)
        await opened.store.close()

    asyncio.run(main())


def test_one_operation_that_fails_leaves_its_neighbours_alone(tmp_path: Path) -> None:
    def fails(queue: JobQueue) -> None:
        queue.accept(job("half"), 1.0)
        raise Conflict("no")

    async def main() -> None:
        opened = Opened(tmp_path)
        results = await asyncio.gather(
            opened.accept("a"), opened.store.run(fails), opened.accept("b"), return_exceptions=True
        )
        assert results[0] is results[2] is True
        assert isinstance(results[1], Conflict)
        assert sorted(leased.id for leased in await opened.claim()) == ["a", "b"]
        await opened.store.close()

    asyncio.run(main())


def test_another_store_hears_of_a_job_and_gets_those_of_one_that_ends(tmp_path: Path) -> None:
    async def main() -> None:
        one, other = Opened(tmp_path), Opened(tmp_path)
        await asyncio.sleep(0.05)
        other.news.clear()
        await one.accept("a")
        await other.hear()
        assert [leased.id for leased in await other.claim()] == ["a"]
        assert await one.claim() == []
        one.news.clear()

        await other.store.close()
        await one.hear()
        assert [leased.runs for leased in await one.claim()] == [2]
        assert one.interrupted == 1
        await one.store.close()

    asyncio.run(main())


@pytest.mark.parametrize("there", [True, False])
def test_a_process_that_is_killed_gives_its_jobs_back_at_once(tmp_path: Path, there: bool) -> None:
    """To who is there when it dies, and to who comes later."""

    async def main() -> None:
        opened = Opened(tmp_path)
        for name in ("a", "b"):
            await opened.accept(name)
        if not there:
            await opened.store.close()
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT / ".src")},
        )
        assert holder.stdout is not None
        assert await asyncio.to_thread(holder.stdout.readline) == b"2\n"
        if there:
            assert await opened.claim() == []
            # A process that is only stopped keeps what it has.
            holder.send_signal(signal.SIGSTOP)
            await asyncio.sleep(0.2)
            assert await opened.claim() == []
            opened.news.clear()
        holder.kill()
        await asyncio.to_thread(holder.wait)
        holder.stdout.close()
        if there:
            await opened.hear()
        else:
            opened = Opened(tmp_path)
            # The kernel may keep the dead one's listening socket a moment longer.
            async with asyncio.timeout(5):
                while opened.interrupted != 2:
                    await opened.hear()
        assert sorted(leased.id for leased in await opened.claim()) == ["a", "b"]
        assert opened.interrupted == 2
        await opened.store.close()
        assert list((tmp_path / "sessions").glob(f"{opened.store.lease}*")) == []

    asyncio.run(main())


def test_a_full_disk_is_told_and_loses_nothing_that_was_accepted(tmp_path: Path) -> None:
    async def main() -> None:
        opened = Opened(tmp_path)
        await opened.accept("before")

        def shrink(queue: JobQueue) -> None:
            (pages,) = queue._db.execute("PRAGMA page_count").fetchone()
            queue._db.execute(f"PRAGMA max_page_count={pages + 4}").fetchone()

        def grow(queue: JobQueue) -> None:
            queue._db.execute("PRAGMA max_page_count=100000").fetchone()

        await opened.store.run(shrink)
        with pytest.raises(StorageFull, match="Expected room for jobs"):
            await opened.accept("large", b"x" * 1_000_000)
        await opened.store.run(grow)
        assert await opened.accept("large", b"x" * 1_000_000)
        assert sorted(leased.id for leased in await opened.claim()) == ["before", "large"]
        await opened.store.close()

    asyncio.run(main())


def test_an_idle_store_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> int:
        opened = Opened(tmp_path)
        await opened.accept("a")
        await asyncio.sleep(0.1)
        before = opened.store._db.total_changes
        asked: list[float] = []
        wait = opened.store._sessions.wait

        def counted(seconds: float) -> set[str]:
            asked.append(seconds)
            return wait(seconds)

        monkeypatch.setattr(opened.store._sessions, "wait", counted)
        await asyncio.sleep(0.5)
        assert opened.store._db.total_changes == before
        await opened.store.close()
        return len(asked)

    # The one that closing woke.
    assert asyncio.run(main()) <= 1


def test_a_file_of_another_release_or_of_something_else_is_refused(tmp_path: Path) -> None:
    async def opening() -> None:
        Opened(tmp_path)

    made = sqlite3.connect(tmp_path / "jobs.sqlite")
    made.execute("PRAGMA user_version=77")
    made.close()
    with pytest.raises(Unavailable, match="found 77"):
        asyncio.run(opening())
    (tmp_path / "jobs.sqlite").write_bytes(b"no database at all, but long enough" * 100)
    with pytest.raises(Unavailable, match=r"jobs\.sqlite"):
        asyncio.run(opening())


def test_a_disk_that_hangs_holds_no_client_and_what_it_gave_up_never_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "ANSWER_SECONDS_MAXIMUM", 0.2)
    hangs = threading.Event()

    async def main() -> None:
        opened = Opened(tmp_path)
        stuck = asyncio.create_task(opened.store.run(lambda queue: hangs.wait(10)))
        await asyncio.sleep(0.05)
        with pytest.raises(Unavailable, match=r"within 0\.2 s"):
            await opened.store.ask(lambda queue: queue.accept(job("late"), 1.0))
        hangs.set()
        assert await stuck
        assert await opened.claim() == []
        await opened.store.close()

    asyncio.run(main())


def test_a_thread_that_breaks_leaves_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        opened = Opened(tmp_path)

        def breaks(queue: JobQueue) -> None:
            raise SystemExit

        results = await asyncio.gather(
            opened.store.run(breaks), opened.accept("a"), return_exceptions=True
        )
        assert all(isinstance(result, Unavailable) for result in results), results
        with pytest.raises(Unavailable):
            await opened.accept("b")
        await opened.store.close()

    monkeypatch.setattr(threading, "excepthook", lambda told: None)
    asyncio.run(main())
