"""What only the SQLite store does: one file, many processes, nobody to ask."""

from __future__ import annotations

import signal
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.store_child import start_child
from harness.waiting import eventually
from stoker.placement import sqlite_file
from stoker.placement.errors import BadRequest, CoordinationLost
from stoker.placement.sqlite_file import Connection
from stoker.placement.sqlite_store import LOOK_SECONDS, SqliteStore
from stoker.placement.store import Change, Entry, StoreState
from stoker.placement.stores import open_store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "store.sqlite"


@pytest.fixture
def opened(path: Path) -> Iterator[Callable[[], SqliteStore]]:
    stores: list[SqliteStore] = []

    def make() -> SqliteStore:
        stores.append(SqliteStore(path))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_file_and_its_folders_are_private(
    path: Path, opened: Callable[[], SqliteStore]
) -> None:
    opened().put("/a", b"x")
    assert {entry.name: oct(mode(entry)) for entry in path.parent.iterdir()} == {
        "store.sqlite": "0o600",
        "store.sqlite-wal": "0o600",
        "store.sqlite-shm": "0o600",
        "store.sqlite.lock": "0o600",
        "sessions": "0o700",
    }
    assert mode(path.parent) == 0o700


def test_a_sessions_folder_that_others_may_enter_is_refused(path: Path) -> None:
    (path.parent / "sessions").mkdir(parents=True, mode=0o755)
    with pytest.raises(CoordinationLost, match=r"mode 0700, found user \d+ and mode 0755"):
        SqliteStore(path)


def test_entries_outlive_the_process(path: Path) -> None:
    first = SqliteStore(path)
    first.put("/a", b"x")
    first.put("/a", b"y")
    first.close()
    second = SqliteStore(path)
    assert second.get("/a") == Entry("/a", b"y", 1)
    second.close()


def test_a_path_longer_than_a_socket_name_may_be_works(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 120) / "store.sqlite"
    reader, writer = SqliteStore(path), SqliteStore(path)
    changes: list[Change] = []
    reader.watch("/", changes.append)
    writer.put("/a", b"x")
    eventually(lambda: changes, seconds=LOOK_SECONDS / 2)
    writer.close()
    reader.close()


def test_another_process_is_told_without_waiting_for_the_look(
    path: Path, opened: Callable[[], SqliteStore]
) -> None:
    store = opened()
    with start_child(f"sqlite://{path}", "watch", "/a") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        delays = []
        for number in range(20):
            store.put("/a/b", str(number).encode())
            returned = time.monotonic_ns()
            told = child.stdout.readline().split()
            assert told[:2] == ["/a/b", str(number)]
            delays.append((int(told[2]) - returned) / 1e9)
        assert sorted(delays)[10] < LOOK_SECONDS / 10
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(10) == 0


def test_a_write_that_nobody_told_of_is_seen_by_the_look(
    path: Path, opened: Callable[[], SqliteStore]
) -> None:
    changes: list[Change] = []
    opened().watch("/", changes.append)
    died_before_its_nudge = Connection(path)
    died_before_its_nudge.put("/a", b"x", None, None, None)
    died_before_its_nudge.close()
    eventually(lambda: changes == [Change("/a", Entry("/a", b"x", 0))], LOOK_SECONDS * 3)


def test_what_a_killed_process_left_is_removed_at_the_next_start(
    path: Path, opened: Callable[[], SqliteStore]
) -> None:
    with start_child(f"sqlite://{path}", "hold", "/a/b") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.kill()
        child.wait()
    store = opened()
    assert store.get("/a/b") is None
    assert len(list((path.parent / "sessions").iterdir())) == 1


def test_a_forked_child_does_not_keep_the_entries_of_its_parent(
    path: Path, opened: Callable[[], SqliteStore]
) -> None:
    store = opened()
    with start_child(f"sqlite://{path}", "hold", "/a/b", "fork") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.kill()
        eventually(lambda: store.get("/a/b") is None, seconds=LOOK_SECONDS * 2)


def test_a_stopped_process_keeps_its_entries_and_hinders_nobody(
    path: Path, opened: Callable[[], SqliteStore]
) -> None:
    store = opened()
    with start_child(f"sqlite://{path}", "hold", "/a/b") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGSTOP)
        for number in range(300):
            store.put("/n", str(number).encode())
        assert opened().get("/a/b") is not None
        child.kill()


def test_a_session_taken_for_dead_is_lost_and_begins_anew(
    path: Path, opened: Callable[[], SqliteStore]
) -> None:
    store, other, states = opened(), opened(), []
    store.put("/a", b"x", ephemeral=True)
    store.on_state(states.append)
    changes: list[Change] = []
    store.watch("/", changes.append)
    mistaken = Connection(path)
    mistaken.end_session(store._sessions.session_id)
    mistaken.close()
    eventually(lambda: states[-2:] == [StoreState.LOST, StoreState.CONNECTED])
    eventually(lambda: changes[-1] == Change("/a", None))
    store.put("/a", b"y", ephemeral=True)
    store.close()
    eventually(lambda: other.get("/a") is None)


def test_tombstones_are_bounded_and_who_is_behind_them_misses_no_deletion(
    path: Path, opened: Callable[[], SqliteStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "TOMBSTONES_KEPT", 20)
    monkeypatch.setattr(sqlite_file, "PRUNE_EVERY", 10)
    store = opened()
    for name in ("gone", "kept"):
        store.put(f"/a/{name}", b"x")
    present: dict[str, Entry | None] = {}
    store.watch("/a", lambda change: present.update({change.path: change.entry}))
    silent = Connection(path)
    silent.delete("/a/gone", None, None)
    for number in range(100):
        silent.put(f"/b/{number}", b"x", None, None, None)
        silent.delete(f"/b/{number}", None, None)
    revision, pruned = silent.revisions()
    assert revision - pruned <= 30
    assert len(silent.news(0)[2]) <= 31
    silent.close()
    eventually(lambda: present["/a/gone"] is None, LOOK_SECONDS * 3)
    assert present["/a/kept"] == Entry("/a/kept", b"x", 0)


def test_a_locked_file_is_coordination_lost(
    path: Path, opened: Callable[[], SqliteStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_SECONDS_MAX", 0.2)
    store = opened()
    hog = sqlite3.connect(path, isolation_level=None)
    hog.execute("BEGIN IMMEDIATE")
    with pytest.raises(CoordinationLost, match="database is locked"):
        store.put("/a", b"x")
    hog.execute("ROLLBACK")
    hog.close()
    assert store.put("/a", b"x") == 0


def test_a_full_disk_is_coordination_lost_and_nothing_is_half_written(
    opened: Callable[[], SqliteStore],
) -> None:
    store = opened()
    store.put("/a", b"x")
    store._calls._db.execute("PRAGMA max_page_count = 20").fetchone()
    with pytest.raises(CoordinationLost, match=r"full\. Free space"):
        store.put("/b", b"x" * 500_000)
    assert [entry.path for entry in store.list("/")] == ["/a"]
    assert store.put("/a", b"y") == 1


def test_a_file_that_is_no_database_is_refused_with_a_remedy(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(CoordinationLost, match="move the file away"):
        SqliteStore(path)


def test_a_file_of_another_schema_is_refused(path: Path) -> None:
    SqliteStore(path).close()
    database = sqlite3.connect(path)
    with database:
        database.execute("UPDATE meta SET value = 99 WHERE name = 'schema'")
    database.close()
    with pytest.raises(CoordinationLost, match=r"Expected schema 1 .* found 99"):
        SqliteStore(path)


def test_a_store_that_cannot_be_read_is_suspended_until_it_can(
    path: Path, opened: Callable[[], SqliteStore]
) -> None:
    store, states, changes = opened(), [], []
    store.on_state(states.append)
    store.watch("/", changes.append)
    broken, store._file = store._file, Connection(path)
    store._file.close()
    store.put("/a", b"x")
    eventually(lambda: states[-1] is StoreState.SUSPENDED)
    store._file = broken
    eventually(lambda: states[-1] is StoreState.CONNECTED, LOOK_SECONDS * 3)
    assert changes == [Change("/a", Entry("/a", b"x", 0))]


def test_open_store_opens_what_the_url_names(path: Path) -> None:
    store = open_store(f"sqlite://{path}", "token")
    store.put("/a", b"x")
    store.close()
    assert path.exists()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "store.sqlite",
        "sqlite://",
        "sqlite:///",
        "sqlite://host/store.sqlite",
        "sqlite:///a/store.sqlite?mode=ro",
        "redis://host:1/a",
        "zookeeper:///chroot",
        "zookeeper://user@host:1/chroot",
        "zookeeper://host:1/bad root",
    ],
)
def test_open_store_refuses_another_url(url: str) -> None:
    with pytest.raises(BadRequest, match="Expected"):
        open_store(url, "token")
