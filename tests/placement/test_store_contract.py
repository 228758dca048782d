"""Every line of the contract in placement/store.py, for every store."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from harness.seen import Kit, Seen, values
from harness.store_child import increment, start_child
from harness.waiting import eventually
from stoker.placement.errors import BadRequest, CoordinationLost, Fenced, VersionConflict
from stoker.placement.store import ABSENT, VALUE_BYTES_MAX, Change, Entry, Fence, Store, StoreState


def test_an_absent_entry_is_none(store: Store) -> None:
    assert store.get("/a/b") is None


def test_versions_grow_by_one_from_zero(store: Store) -> None:
    assert [store.put("/a/b", value) for value in (b"x", b"y", b"z")] == [0, 1, 2]
    assert store.get("/a/b") == Entry("/a/b", b"z", 2)


def test_an_entry_may_be_empty(store: Store) -> None:
    store.put("/a", b"")
    assert store.get("/a") == Entry("/a", b"", 0)


def test_an_entry_created_again_begins_at_version_zero(store: Store) -> None:
    store.put("/a/b", b"x")
    store.put("/a/b", b"y")
    store.delete("/a/b")
    assert store.put("/a/b", b"z") == 0


def test_absent_creates_once(store: Store) -> None:
    assert store.put("/a/b", b"x", version=ABSENT) == 0
    with pytest.raises(VersionConflict, match=r"Expected version none of /a/b .* found 0"):
        store.put("/a/b", b"y", version=ABSENT)
    assert store.get("/a/b") == Entry("/a/b", b"x", 0)


def test_a_version_replaces_exactly_that_version(store: Store) -> None:
    store.put("/a/b", b"x")
    assert store.put("/a/b", b"y", version=0) == 1
    with pytest.raises(VersionConflict, match=r"Expected version 0 of /a/b .* found 1"):
        store.put("/a/b", b"z", version=0)
    with pytest.raises(VersionConflict, match="found none"):
        store.put("/a/c", b"z", version=0)
    assert store.get("/a/b") == Entry("/a/b", b"y", 1)


def test_delete_says_whether_there_was_something(store: Store) -> None:
    store.put("/a/b", b"x")
    assert [store.delete("/a/b"), store.delete("/a/b"), store.delete("/no/such")] == [
        True,
        False,
        False,
    ]
    assert store.get("/a/b") is None


def test_delete_of_another_version_is_a_conflict(store: Store) -> None:
    store.put("/a/b", b"x")
    store.put("/a/b", b"y")
    with pytest.raises(VersionConflict):
        store.delete("/a/b", version=0)
    assert store.delete("/a/b", version=1)
    assert not store.delete("/a/b", version=1)


def test_entries_may_lie_below_entries(store: Store) -> None:
    store.put("/a/b", b"outer", ephemeral=True)
    store.put("/a/b/c", b"inner")
    store.delete("/a/b")
    assert values(store.list("/a")) == {"/a/b/c": b"inner"}
    assert store.put("/a/b", b"again", version=ABSENT) == 0


def test_list_gives_all_below_at_any_depth_by_path(store: Store) -> None:
    paths = ["/a/b", "/a/b.c", "/a/b/c/d", "/a/b/c", "/a/B", "/ab", "/b/a", "/a"]
    for path in paths:
        store.put(path, path.encode())
    below = sorted(path for path in paths if path.startswith("/a/"))
    assert [entry.path for entry in store.list("/a")] == below
    assert [entry.path for entry in store.list("/a/")] == below
    assert [entry.path for entry in store.list("/")] == sorted(paths)
    assert store.list("/c") == ()


def test_list_leaves_out_what_only_leads_to_entries(store: Store) -> None:
    store.put("/a/b/c", b"x")
    store.delete("/a/b/c")
    assert store.list("/") == ()


def test_a_fence_that_holds_lets_a_write_through(store: Store) -> None:
    fence = Fence("/epoch", store.put("/epoch", b"1"))
    assert store.put("/a/new", b"x", version=ABSENT, fence=fence) == 0
    assert store.put("/a/new", b"y", fence=fence) == 1
    assert store.put("/a/new", b"z", version=1, fence=fence) == 2
    assert store.delete("/a/new", fence=fence)
    assert not store.delete("/a/new", fence=fence)


def test_a_broken_fence_stops_every_write(store: Store) -> None:
    fence = Fence("/epoch", store.put("/epoch", b"1"))
    store.put("/a/b", b"x")
    store.put("/epoch", b"2")
    for version in (None, 0):
        with pytest.raises(Fenced, match="Expected version 0 of the fence /epoch"):
            store.put("/a/b", b"y", version=version, fence=fence)
        with pytest.raises(Fenced):
            store.delete("/a/b", version=version, fence=fence)
    with pytest.raises(Fenced):
        store.put("/a/new", b"y", version=ABSENT, fence=fence)
    with pytest.raises(Fenced):
        store.put("/a/new", b"y", ephemeral=True, fence=fence)
    assert values(store.list("/a")) == {"/a/b": b"x"}


def test_a_fence_that_is_gone_is_broken(store: Store) -> None:
    store.put("/a/b", b"x")
    with pytest.raises(Fenced, match="found none"):
        store.put("/a/b", b"y", fence=Fence("/epoch", 0))


@pytest.mark.parametrize(
    "path",
    ["", "a", "/", "a/b", "/a/", "//a", "/a//b", "/a/./b", "/a/..", "/a b", "/a~", "/ä", "/a\0b"],
)
@pytest.mark.parametrize("call", ["put", "get", "delete"])
def test_a_bad_path_is_refused(store: Store, call: str, path: str) -> None:
    arguments = (b"x",) if call == "put" else ()
    with pytest.raises(BadRequest, match="Expected a path"):
        getattr(store, call)(path, *arguments)


@pytest.mark.parametrize("path", ["/" + "x" * 256, "/x" * 600])
def test_a_path_too_long_is_refused(store: Store, path: str) -> None:
    with pytest.raises(BadRequest, match="Expected a path"):
        store.put(path, b"x")


@pytest.mark.parametrize("prefix", ["", "a", "//", "/a//", "/a b", "/.."])
def test_a_bad_prefix_is_refused(store: Store, prefix: str) -> None:
    with pytest.raises(BadRequest):
        store.list(prefix)
    with pytest.raises(BadRequest):
        store.watch(prefix, Seen())


def test_the_greatest_value_is_kept_and_a_greater_one_refused(store: Store) -> None:
    value = b"v" * VALUE_BYTES_MAX
    store.put("/a/b", value)
    assert store.get("/a/b") == Entry("/a/b", value, 0)
    with pytest.raises(BadRequest, match="Expected at most 1000000 bytes"):
        store.put("/a/b", value + b"v")


def test_a_version_below_zero_is_refused(store: Store) -> None:
    with pytest.raises(BadRequest):
        store.put("/a", b"", version=-2)
    with pytest.raises(BadRequest):
        store.delete("/a", version=ABSENT)
    with pytest.raises(BadRequest):
        store.put("/a", b"", fence=Fence("/f", -1))


def test_an_ephemeral_entry_is_gone_when_its_session_is_closed(kit: Kit) -> None:
    owner, other, seen = kit.open(), kit.open(), Seen()
    other.watch("/a", seen)
    owner.put("/a/kept", b"x")
    owner.put("/a/gone", b"y", ephemeral=True)
    eventually(lambda: len(seen.now) == 2)
    owner.close()
    eventually(lambda: seen.now == {"/a/kept": b"x"}, seconds=1)
    assert values(other.list("/a")) == {"/a/kept": b"x"}


def test_an_ephemeral_entry_keeps_its_owner_over_writes(kit: Kit) -> None:
    owner, other = kit.open(), kit.open()
    versions = [owner.put("/a/b", value, ephemeral=True) for value in (b"x", b"y")]
    assert versions == [0, 1]
    owner.close()
    eventually(lambda: other.get("/a/b") is None, seconds=1)


def test_who_writes_an_entry_as_ephemeral_owns_it_anew(kit: Kit) -> None:
    first, second = kit.open(), kit.open()
    first.put("/a/b", b"x", ephemeral=True)
    assert second.put("/a/b", b"y", version=0, ephemeral=True) == 0
    first.close()
    assert second.get("/a/b") == Entry("/a/b", b"y", 0)
    assert second.put("/a/b", b"z") == 0  # from now on it stays
    second.close()
    assert kit.open().get("/a/b") == Entry("/a/b", b"z", 0)


def test_an_ephemeral_entry_is_gone_when_its_process_is_killed(shared_kit: Kit) -> None:
    store, seen = shared_kit.open(), Seen()
    store.watch("/a", seen)
    with start_child(shared_kit.url, "hold", "/a/b") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        eventually(lambda: seen.now == {"/a/b": b"held"})
        child.send_signal(signal.SIGKILL)
        # ZooKeeper learns it by the session's timeout, 2 s here, checked each tick of 0.5 s.
        eventually(lambda: seen.now == {}, seconds=1 if shared_kit.name == "sqlite" else 5)
    assert store.get("/a/b") is None


def test_a_watch_sees_what_another_process_writes(shared_kit: Kit) -> None:
    store, seen = shared_kit.open(), Seen()
    store.watch("/a", seen)
    with start_child(shared_kit.url, "increment", "/a/n", "5") as child:
        eventually(lambda: seen.now == {"/a/n": b"5"}, seconds=20)
        assert child.wait(20) == 0


def test_a_closed_store_refuses_calls_and_calls_nobody(kit: Kit) -> None:
    store, other, seen, states = kit.open(), kit.open(), Seen(), []
    store.watch("/a", seen)
    store.on_state(states.append)
    store.close()
    store.close()
    other.put("/a/b", b"x")
    with pytest.raises(CoordinationLost, match="closed"):
        store.get("/a/b")
    with pytest.raises(CoordinationLost, match="closed"):
        store.put("/a/b", b"y")
    time.sleep(0.1)
    assert (seen.changes, states) == ([], [StoreState.CONNECTED])


def test_a_store_may_be_closed_by_its_own_callback(store: Store) -> None:
    closed = threading.Event()

    def close(change: Change) -> None:
        store.close()
        closed.set()

    store.watch("/a", close)
    store.put("/a/b", b"x")
    assert closed.wait(15)


def test_on_state_tells_the_present_state(store: Store) -> None:
    states: list[StoreState] = []
    store.on_state(states.append)
    assert states == [StoreState.CONNECTED]


def test_increments_by_version_from_four_threads_lose_nothing(kit: Kit) -> None:
    stores = [kit.open(), kit.open()]
    threads = [threading.Thread(target=increment, args=(store, "/a/n", 15)) for store in stores * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stores[0].get("/a/n") == Entry("/a/n", b"60", 59)


def test_increments_by_version_from_two_processes_lose_nothing(shared_kit: Kit) -> None:
    children = [start_child(shared_kit.url, "increment", "/a/n", "50") for _ in range(2)]
    for child in children:
        with child:
            assert child.wait(30) == 0
    assert shared_kit.open().get("/a/n") == Entry("/a/n", b"100", 99)
