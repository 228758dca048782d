import dataclasses
import threading
from collections.abc import Callable

import pytest

from stoker.placement.errors import CoordinationLost, DeadlineExceeded
from stoker.placement.memory_store import MemoryStore
from stoker.placement.records import (
    Assignment,
    FailureRecord,
    FunctionRecord,
    ImageRecord,
    InstanceRecord,
    LeaderRecord,
    NodeRecord,
    ResidentRecord,
    encode,
)
from stoker.placement.store import Change, Entry
from stoker.placement.view import LEADER_PATH, OWN_WRITE_SECONDS, Snapshot, View

FUNCTION = FunctionRecord("f", "ns", "img")
NODE = NodeRecord("n", "127.0.0.1:1", 2, 100, 100, 4)
RESIDENT = ResidentRecord("n", "a" * 64, 1, 2)
INSTANCE = InstanceRecord("i-1", "f.ns", 1, "n", "127.0.0.1:2", "serving", 1, 0.0)
ASSIGNMENT = Assignment("i-1", "f.ns", 1, "n", "127.0.0.1:2", 1, 0.0)
IMAGE = ImageRecord("img", "b" * 64)
FAILURE = FailureRecord("f.ns", 1, "i-0", "n", 1, 1, {"code": "start_failed"}, 0.5, 1.5)
LEADER = LeaderRecord("me", "127.0.0.1:3", 1)


class ScriptedStore:
    """Delivers what the test tells it to, when it tells it to."""

    def __init__(self) -> None:
        self.watchers: dict[str, Callable[[Change], None]] = {}
        self.entries: tuple[Entry, ...] = ()
        self.during_list: Callable[[], None] = lambda: None

    def list(self, prefix: str) -> tuple[Entry, ...]:
        found = tuple(e for e in self.entries if e.path.startswith(prefix + "/"))
        self.during_list()
        return found

    def watch(self, prefix: str, on_change: Callable[[Change], None]) -> Callable[[], None]:
        self.watchers[prefix] = on_change
        return lambda: None

    def tell(self, entry: Entry | None, path: str = FUNCTION.path) -> None:
        self.watchers["/" + path.split("/")[1]](Change(path, entry))


def function_entry(image: str, version: int) -> Entry:
    return Entry(FUNCTION.path, encode(FunctionRecord("f", "ns", image)), version)


def image_of(view: View) -> str | None:
    function = view.snapshot().functions.get("f.ns")
    return function.image if function else None


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def fill(store: MemoryStore) -> None:
    for record in (FUNCTION, NODE, RESIDENT, INSTANCE, ASSIGNMENT, FAILURE):
        store.put(record.path, encode(record))
    store.put(ImageRecord.path_of("img"), encode(IMAGE))
    store.put(LEADER_PATH, encode(LEADER))
    store.put("/placement/epoch", b"1")
    store.put("/code/" + "b" * 64, b"not a record")


def check_full(snapshot: Snapshot) -> None:
    assert snapshot.functions == {"f.ns": FUNCTION}
    assert snapshot.nodes == {"n": NODE}
    assert snapshot.residents == {("n", "a" * 64): RESIDENT}
    assert snapshot.instances == {"i-1": INSTANCE}
    assert snapshot.assignments == {"i-1": ASSIGNMENT}
    assert snapshot.images == {"img": IMAGE}
    assert snapshot.failures == {"f.ns": FAILURE}
    assert snapshot.leader == LEADER
    assert snapshot.instances_of("f.ns") == (INSTANCE,)
    assert snapshot.assignments_of("f.ns") == (ASSIGNMENT,)
    assert snapshot.instances_of("g.ns") == ()


def test_a_new_view_has_everything_that_was_there(store: MemoryStore) -> None:
    fill(store)
    check_full(View(store).snapshot())


def test_a_view_follows_every_change(store: MemoryStore) -> None:
    view = View(store.session())
    assert view.snapshot() == Snapshot()
    fill(store)
    check_full(view.snapshot())
    store.delete(INSTANCE.path)
    store.delete(LEADER_PATH)
    assert view.snapshot().instances_of("f.ns") == ()
    assert view.snapshot().leader is None


def test_a_snapshot_is_the_same_object_until_something_changes(store: MemoryStore) -> None:
    view = View(store)
    fill(store)
    before = view.snapshot()
    assert view.snapshot() is before
    store.put("/placement/epoch", b"2")
    assert view.snapshot() is before
    store.put(NODE.path, encode(NODE))
    after = view.snapshot()
    assert after is not before
    assert after.functions is before.functions
    check_full(before)


def test_a_snapshot_cannot_be_changed(store: MemoryStore) -> None:
    fill(store)
    snapshot = View(store).snapshot()
    with pytest.raises(TypeError):
        snapshot.functions["g.ns"] = FUNCTION  # type: ignore[index]


def test_a_write_is_seen_by_its_version_also_if_the_record_reads_as_before(
    store: MemoryStore,
) -> None:
    view = View(store)
    fill(store)
    store.put(FUNCTION.path, encode(FUNCTION))
    assert view.snapshot().function_versions == {"f.ns": 1}


def test_a_record_that_cannot_be_read_is_passed_over(store: MemoryStore) -> None:
    view = View(store)
    fill(store)
    store.put("/functions/ns/bad", b"{")
    store.put("/functions/ns/next", b'{"v": 99}')
    assert set(view.snapshot().functions) == {"f.ns"}
    store.put(FUNCTION.path, b"garbage")
    assert view.snapshot().functions == {}


def test_callbacks_come_after_the_change_can_be_seen(store: MemoryStore) -> None:
    view = View(store)
    seen: list[int] = []
    view.on_change(lambda: seen.append(len(view.snapshot().functions)))
    store.put(FUNCTION.path, encode(FUNCTION))
    store.delete(FUNCTION.path)
    assert seen == [1, 0]


def test_wait_for_returns_when_another_thread_brings_the_state(store: MemoryStore) -> None:
    view = View(store)
    timer = threading.Timer(0.05, fill, [store])
    timer.start()
    snapshot = view.wait_for(lambda s: "i-1" in s.instances, timeout_seconds=5.0)
    assert snapshot.instances["i-1"] == INSTANCE
    timer.join()


def test_wait_for_gives_up_at_its_deadline(store: MemoryStore) -> None:
    with pytest.raises(DeadlineExceeded):
        View(store).wait_for(lambda s: bool(s.nodes), timeout_seconds=0.02)


def test_a_closed_view_keeps_its_last_snapshot(store: MemoryStore) -> None:
    view = View(store)
    fill(store)
    view.close()
    store.delete(FUNCTION.path)
    check_full(view.snapshot())


def test_ones_own_write_is_seen_before_the_watch_tells_it() -> None:
    view = View(ScriptedStore())
    view.apply(Change(FUNCTION.path, function_entry("mine", 0)))
    assert image_of(view) == "mine"


def test_a_late_echo_of_an_older_value_does_not_take_ones_own_write_back() -> None:
    store = ScriptedStore()
    view = View(store)
    view.apply(Change(FUNCTION.path, function_entry("mine", 3)))
    store.tell(function_entry("older", 2))
    assert image_of(view) == "mine"
    store.tell(None)
    assert image_of(view) == "mine"
    store.tell(function_entry("mine", 3))
    store.tell(None)
    assert image_of(view) is None


def test_ones_own_deletion_is_not_undone_by_a_late_echo() -> None:
    store = ScriptedStore()
    view = View(store)
    store.tell(function_entry("old", 0))
    view.apply(Change(FUNCTION.path, None))
    store.tell(function_entry("old", 1))
    assert image_of(view) is None
    store.tell(None)
    store.tell(function_entry("new", 0))
    assert image_of(view) == "new"


def test_a_newer_value_of_somebody_else_is_taken_at_once() -> None:
    store = ScriptedStore()
    view = View(store)
    view.apply(Change(FUNCTION.path, function_entry("mine", 3)))
    store.tell(function_entry("theirs", 4))
    assert image_of(view) == "theirs"


def test_a_later_write_that_the_watch_told_first_is_not_taken_back() -> None:
    store = ScriptedStore()
    view = View(store)
    store.tell(function_entry("theirs", 4))
    view.apply(Change(FUNCTION.path, function_entry("mine", 3)))
    assert image_of(view) == "theirs"
    store.tell(None)
    assert image_of(view) is None


def test_what_contradicts_ones_own_write_holds_after_a_while() -> None:
    moments = [0.0]
    store = ScriptedStore()
    view = View(store, clock=lambda: moments[0])
    view.apply(Change(FUNCTION.path, function_entry("mine", 3)))
    # Deleted and written again by another: its version begins anew.
    store.tell(function_entry("theirs", 0))
    assert image_of(view) == "mine"
    moments[0] = OWN_WRITE_SECONDS
    assert image_of(view) == "theirs"


def test_a_refresh_reads_what_the_watch_did_not_tell() -> None:
    store = ScriptedStore()
    view = View(store)
    store.entries = (function_entry("there", 5),)
    view.refresh()
    assert image_of(view) == "there"
    store.entries = ()
    view.refresh()
    assert image_of(view) is None


def test_a_refresh_does_not_undo_what_the_watch_told_meanwhile() -> None:
    store = ScriptedStore()
    view = View(store)
    store.entries = (function_entry("listed", 5),)
    store.during_list = lambda: store.tell(function_entry("newer", 6))
    view.refresh()
    assert image_of(view) == "newer"


def test_a_refresh_says_when_the_store_does_not_answer(store: MemoryStore) -> None:
    view = View(store)
    fill(store)
    store.suspend()
    with pytest.raises(CoordinationLost):
        view.refresh()
    check_full(view.snapshot())


def test_changes_are_told_once_with_what_was_before(store: MemoryStore) -> None:
    store.put(FUNCTION.path, encode(FUNCTION))
    store.put(FAILURE.path, encode(FAILURE))
    view = View(store)
    snapshot, changes = view.changes()
    assert (snapshot, changes) == (view.snapshot(), [(None, FUNCTION)])
    assert view.changes()[1] == []

    larger = dataclasses.replace(NODE, cores=4)
    store.put(NODE.path, encode(NODE))
    store.put(NODE.path, encode(larger))
    store.put(ASSIGNMENT.path, encode(ASSIGNMENT))
    store.delete(FUNCTION.path)
    store.delete(FAILURE.path)
    snapshot, changes = view.changes()
    assert changes == [(None, larger), (None, ASSIGNMENT), (FUNCTION, None)]
    assert snapshot.nodes == {"n": larger}


def test_what_came_and_went_while_nobody_read_is_not_kept(store: MemoryStore) -> None:
    view = View(store)
    view.changes()
    store.put(ASSIGNMENT.path, encode(ASSIGNMENT))
    store.delete(ASSIGNMENT.path)
    assert view.changes()[1] == []


def test_a_snapshot_that_was_given_out_never_changes(store: MemoryStore) -> None:
    store.put(INSTANCE.path, encode(INSTANCE))
    view = View(store)
    before = view.snapshot()
    second = dataclasses.replace(INSTANCE, instance_id="i-2")
    store.put(second.path, encode(second))
    store.delete(INSTANCE.path)
    assert before.instances_of("f.ns") == (INSTANCE,)
    assert list(before.instances) == ["i-1"]
    assert view.snapshot().instances_of("f.ns") == (second,)
