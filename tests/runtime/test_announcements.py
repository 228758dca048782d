from __future__ import annotations

import asyncio

import pytest

from stoker.placement.memory_store import MemoryStore
from stoker.runtime import announcements as announcements_module
from stoker.runtime.announcements import Announcements

PATH = "/nodes/n1"


async def announcing(store: MemoryStore) -> tuple[Announcements, asyncio.Task[None]]:
    made = Announcements(store)
    return made, asyncio.ensure_future(made.run())


def value(store: MemoryStore) -> bytes | None:
    entry = store.get(PATH)
    return None if entry is None else entry.value


def test_the_last_value_is_written_and_a_removed_one_deleted() -> None:
    async def run() -> list[bytes | None]:
        store = MemoryStore()
        announcements, task = await announcing(store)
        for number in range(5):
            announcements.put(PATH, b"%d" % number)
        assert await announcements.settled(PATH, 5)
        seen = [value(store)]
        announcements.remove(PATH)
        assert await announcements.settled(PATH, 5)
        task.cancel()
        return [*seen, value(store)]

    assert asyncio.run(run()) == [b"4", None]


def test_a_record_is_ephemeral() -> None:
    async def run() -> MemoryStore:
        store = MemoryStore()
        session = store.session()
        announcements, task = await announcing(session)
        announcements.put(PATH, b"x")
        assert await announcements.settled(PATH, 5)
        task.cancel()
        session.close()
        return store

    assert value(asyncio.run(run())) is None


@pytest.mark.parametrize("told", ["vanished", "forget"])
def test_what_the_store_lost_is_written_again(told: str) -> None:
    async def run() -> bytes | None:
        store = MemoryStore()
        announcements, task = await announcing(store)
        announcements.put(PATH, b"x")
        assert await announcements.settled(PATH, 5)
        store.delete(PATH)
        if told == "vanished":
            announcements.vanished(PATH)
        else:
            announcements.forget()
        assert await announcements.settled(PATH, 5)
        task.cancel()
        return value(store)

    assert asyncio.run(run()) == b"x"


def test_while_the_store_cannot_be_reached_writes_wait(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def run() -> tuple[bool, bytes | None]:
        store = MemoryStore()
        announcements, task = await announcing(store)
        store.suspend()
        announcements.put(PATH, b"x")
        early = await announcements.settled(PATH, 0.05)
        store.resume()
        assert await announcements.settled(PATH, 5)
        task.cancel()
        return early, value(store)

    assert asyncio.run(run()) == (False, b"x")
    assert "announcement_delayed" in capsys.readouterr().out


def test_a_store_that_is_back_is_written_to_before_the_pause_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(announcements_module, "RETRY_SECONDS_MINIMUM", 60.0)

    async def run() -> bool:
        store = MemoryStore()
        announcements, task = await announcing(store)
        store.suspend()
        announcements.put(PATH, b"x")
        assert not await announcements.settled(PATH, 0.05)
        store.resume()
        announcements.hurry()
        settled = await announcements.settled(PATH, 5)
        task.cancel()
        return settled

    assert asyncio.run(run())
