from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from harness.waiting import eventually
from stoker.placement.errors import StorageFull
from stoker.placement.records import CheckpointRef
from stoker.runtime.read_ahead import ReadAhead

FIRST, SECOND, THIRD = (CheckpointRef(f"s3://b/{x}", x * 64, 10, packed=True) for x in "abc")


class Cache:
    """Brings one checkpoint after the other, each when it is let go."""

    def __init__(self) -> None:
        self.asked: list[CheckpointRef] = []
        self.here: list[CheckpointRef] = []
        self.full: set[CheckpointRef] = set()
        self.go = threading.Semaphore(0)

    def bring(self, ref: CheckpointRef) -> Load | None:
        self.asked.append(ref)
        if ref in self.full:
            raise StorageFull("There is no room.")
        return None if ref in self.here else Load(self, ref)


class Load:
    def __init__(self, cache: Cache, ref: CheckpointRef) -> None:
        self._cache = cache
        self._ref = ref

    def wait(self, timeout_seconds: float) -> None:
        assert self._cache.go.acquire(timeout=10)
        self._cache.here.append(self._ref)


@pytest.fixture
def cache() -> Cache:
    return Cache()


@pytest.fixture
def read_ahead(cache: Cache) -> Iterator[ReadAhead]:
    made = ReadAhead(cache.bring)
    yield made
    made.close()
    cache.go.release(10)
    made.join()


def test_one_checkpoint_comes_after_the_other(cache: Cache, read_ahead: ReadAhead) -> None:
    read_ahead.follow((FIRST, SECOND))
    eventually(lambda: cache.asked == [FIRST])
    cache.go.release()
    eventually(lambda: cache.asked == [FIRST, SECOND])
    assert cache.here == [FIRST]
    cache.go.release()
    eventually(lambda: cache.here == [FIRST, SECOND])


def test_a_new_order_is_followed_when_what_is_under_way_has_come(
    cache: Cache, read_ahead: ReadAhead
) -> None:
    read_ahead.follow((FIRST, SECOND))
    eventually(lambda: cache.asked == [FIRST])
    read_ahead.follow((THIRD,))
    cache.go.release(2)
    eventually(lambda: cache.here == [FIRST, THIRD])
    assert SECOND not in cache.asked


def test_what_finds_no_room_is_tried_again_with_the_next_order(
    cache: Cache, read_ahead: ReadAhead
) -> None:
    cache.full = {FIRST}
    cache.go.release(2)
    read_ahead.follow((FIRST, SECOND))
    eventually(lambda: cache.here == [SECOND])
    assert cache.asked == [FIRST, SECOND]
    cache.full = set()
    read_ahead.follow((FIRST,))
    eventually(lambda: cache.here == [SECOND, FIRST])


def test_nothing_begins_after_the_end(cache: Cache) -> None:
    read_ahead = ReadAhead(cache.bring)
    read_ahead.follow((FIRST, SECOND))
    eventually(lambda: cache.asked == [FIRST])
    read_ahead.close()
    cache.go.release(2)
    read_ahead.join()
    assert cache.asked == [FIRST]
