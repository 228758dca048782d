"""What the contract in placement/store.py promises of watches, for every store."""

from __future__ import annotations

import threading
import time

from harness.seen import Kit, Seen, values
from harness.waiting import eventually
from stoker.placement.store import Change, Entry, Store


def test_a_watch_first_tells_what_is_there(store: Store) -> None:
    store.put("/a/b", b"x")
    store.put("/a/c/d", b"y")
    store.put("/b", b"z")
    seen = Seen()
    store.watch("/a", seen)
    assert seen.now == {"/a/b": b"x", "/a/c/d": b"y"}


def test_a_watch_tells_creation_change_and_deletion(store: Store) -> None:
    seen = Seen()
    store.watch("/a", seen)
    store.put("/a/b", b"x")
    eventually(lambda: seen.now == {"/a/b": b"x"})
    store.put("/a/b", b"y")
    eventually(lambda: seen.now == {"/a/b": b"y"})
    assert seen.changes[-1] == Change("/a/b", Entry("/a/b", b"y", 1))
    store.put("/a/c/d/e", b"z")
    store.put("/elsewhere", b"z")
    eventually(lambda: seen.now == {"/a/b": b"y", "/a/c/d/e": b"z"})
    store.delete("/a/b")
    store.delete("/a/c/d/e")
    eventually(lambda: seen.now == {})
    assert Change("/a/b", None) in seen.changes


def test_a_watch_tells_of_an_entry_created_again(store: Store) -> None:
    seen = Seen()
    store.put("/a/b", b"x")
    store.watch("/a", seen)
    store.delete("/a/b")
    store.put("/a/b", b"x")
    eventually(lambda: seen.changes[-1] == Change("/a/b", Entry("/a/b", b"x", 0)))
    store.delete("/a/b")
    eventually(lambda: seen.now == {})


def test_a_watch_sees_what_another_session_writes(kit: Kit) -> None:
    writer, reader, seen = kit.open(), kit.open(), Seen()
    reader.watch("/", seen)
    for number in range(20):
        writer.put(f"/a/{number}", b"x")
    writer.put("/a/3", b"last")
    writer.delete("/a/4")
    expected = values(reader.list("/"))
    assert len(expected) == 19
    eventually(lambda: seen.now == expected)


def test_the_last_value_is_never_skipped(kit: Kit) -> None:
    writers, reader, seen = [kit.open(), kit.open()], kit.open(), Seen()
    reader.watch("/a", seen)

    def write(store: Store) -> None:
        for number in range(50):
            store.put(f"/a/{number % 5}", str(number).encode())
            store.delete(f"/a/{(number + 2) % 5}")

    threads = [threading.Thread(target=write, args=(store,)) for store in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: seen.now == values(reader.list("/a")))


def test_changes_of_a_watch_come_one_at_a_time(kit: Kit) -> None:
    store, inside, overlaps = kit.open(), threading.Lock(), []
    told = []

    def slow(change: Change) -> None:
        overlaps.append(not inside.acquire(blocking=False))
        time.sleep(0.001)
        inside.release()
        told.append(change.path)

    store.watch("/a", slow)
    others = [kit.open() for _ in range(2)]
    threads = [
        threading.Thread(target=lambda other=other: [other.put(f"/a/{n}", b"") for n in range(10)])
        for other in others
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: len(set(told)) == 10)
    assert not any(overlaps)


def test_a_stopped_watch_tells_nothing_more(store: Store) -> None:
    stopped, running = Seen(), Seen()
    stop = store.watch("/a", stopped)
    store.watch("/a", running)
    stop()
    store.put("/a/b", b"x")
    eventually(lambda: running.now == {"/a/b": b"x"})
    assert stopped.changes == []


def test_a_callback_may_write_and_watch(store: Store) -> None:
    inner = Seen()

    def copy(change: Change) -> None:
        if change.entry:
            store.put("/copy" + change.path, change.entry.value)
            store.watch("/copy", inner)

    store.watch("/a", copy)
    store.put("/a/b", b"x")
    eventually(lambda: inner.now == {"/copy/a/b": b"x"})


def test_a_callback_that_fails_stops_nothing(store: Store) -> None:
    seen = Seen()

    def fail(change: Change) -> None:
        raise ValueError(change.path)

    store.watch("/a", fail)
    store.watch("/a", seen)
    store.put("/a/b", b"x")
    store.put("/a/c", b"y")
    eventually(lambda: seen.now == {"/a/b": b"x", "/a/c": b"y"})
