"""One leader, a growing epoch, and fences that break, over every store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import pytest

from harness.store_child import start_child
from harness.waiting import eventually
from stoker.placement.election import Election
from stoker.placement.errors import Fenced
from stoker.placement.memory_store import MemoryStore
from stoker.placement.store import Fence, Store

LEADER, EPOCH = "/placement/leader", "/placement/epoch"


class Kit(Protocol):
    url: str

    def open(self) -> Store: ...


class Candidate:
    """An election and what it told: ("elected", epoch) and ("lost", epoch)."""

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.name = name
        self.told: list[tuple[str, int]] = []
        self.fences: list[Fence] = []
        self.election = Election(
            store, LEADER, EPOCH, self._record, self._on_elected, self._on_lost
        )

    @property
    def leads(self) -> bool:
        return bool(self.told) and self.told[-1][0] == "elected" and self.election.leading

    def _record(self, epoch: int) -> bytes:
        return f"{self.name} {epoch}".encode()

    def _on_elected(self, epoch: int, fence: Fence) -> None:
        self.fences.append(fence)
        self.told.append(("elected", epoch))

    def _on_lost(self) -> None:
        self.told.append(("lost", self.told[-1][1]))


@pytest.fixture
def start() -> Iterator[Callable[[Store, str], Candidate]]:
    candidates: list[Candidate] = []

    def make(store: Store, name: str = "one") -> Candidate:
        candidates.append(Candidate(store, name))
        candidates[-1].election.start()
        return candidates[-1]

    yield make
    for candidate in candidates:
        candidate.election.close()


Start = Callable[..., Candidate]


def leader_of(candidates: list[Candidate]) -> Candidate:
    eventually(lambda: any(candidate.leads for candidate in candidates))
    (leader,) = [candidate for candidate in candidates if candidate.leads]
    return leader


def test_one_of_three_leads_and_its_record_can_be_read(kit: Kit, start: Start) -> None:
    candidates = [start(kit.open(), name) for name in ("one", "two", "three")]
    leader = leader_of(candidates)
    assert leader.told == [("elected", 1)]
    assert [c.told for c in candidates if c is not leader] == [[], []]
    entry = leader.store.get(LEADER)
    assert entry is not None
    assert entry.value == f"{leader.name} 1".encode()


def test_when_a_leader_resigns_another_leads_and_the_old_fence_is_broken(
    kit: Kit, start: Start
) -> None:
    candidates = [start(kit.open(), name) for name in ("one", "two", "three")]
    for epoch in (1, 2, 3):
        leader = leader_of(candidates)
        assert leader.told == [("elected", epoch)]
        leader.store.put("/decided", leader.name.encode(), fence=leader.fences[0])
        leader.election.close()
        assert leader.told == [("elected", epoch), ("lost", epoch)]
        candidates.remove(leader)
        if candidates:
            leader_of(candidates)
            with pytest.raises(Fenced):
                leader.store.put("/decided", b"too late", fence=leader.fences[0])
    assert start(kit.open()).store.get("/decided") is not None


def test_when_the_leaders_session_ends_another_leads(kit: Kit, start: Start) -> None:
    first, second = start(kit.open(), "one"), start(kit.open(), "two")
    leader = leader_of([first, second])
    other = second if leader is first else first
    leader.store.close()
    eventually(lambda: other.told == [("elected", 2)])


def test_when_the_leaders_process_is_killed_another_leads(shared_kit: Kit, start: Start) -> None:
    with start_child(shared_kit.url, "hold", LEADER) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        candidate = start(shared_kit.open())
        assert not candidate.election.leading
        child.kill()
        eventually(lambda: candidate.leads, seconds=15)


def test_a_leader_whose_entry_is_deleted_has_lost_and_tries_again(kit: Kit, start: Start) -> None:
    leader, foreign = start(kit.open()), kit.open()
    eventually(lambda: leader.leads)
    foreign.delete(LEADER)
    eventually(lambda: leader.told == [("elected", 1), ("lost", 1), ("elected", 2)])


def test_a_leader_whose_entry_is_another_ones_has_lost(kit: Kit, start: Start) -> None:
    leader, usurper = start(kit.open()), kit.open()
    eventually(lambda: leader.leads)
    usurper.put(LEADER, b"usurper 7", ephemeral=True)
    eventually(lambda: leader.told == [("elected", 1), ("lost", 1)])
    usurper.close()
    eventually(lambda: leader.told[-1] == ("elected", 2))


def test_a_leader_whose_epoch_is_overtaken_has_lost_and_goes_beyond_it(
    kit: Kit, start: Start
) -> None:
    leader, foreign = start(kit.open()), kit.open()
    eventually(lambda: leader.leads)
    foreign.put(EPOCH, b"41")
    eventually(lambda: leader.told == [("elected", 1), ("lost", 1), ("elected", 42)])
    with pytest.raises(Fenced):
        leader.store.put("/decided", b"x", fence=leader.fences[0])
    leader.store.put("/decided", b"x", fence=leader.fences[1])


def test_a_suspended_leader_has_lost_and_leads_again_with_a_new_epoch(start: Start) -> None:
    store = MemoryStore()
    leader = start(store)
    eventually(lambda: leader.leads)
    store.suspend()
    assert not leader.election.leading
    eventually(lambda: leader.told == [("elected", 1), ("lost", 1)])
    store.resume()
    eventually(lambda: leader.told == [("elected", 1), ("lost", 1), ("elected", 2)])


def test_a_leader_whose_session_expires_has_lost_and_another_leads(start: Start) -> None:
    store = MemoryStore()
    leader = start(store, "one")
    eventually(lambda: leader.leads)
    other = start(store.session(), "two")
    store.suspend()
    store.expire()
    eventually(lambda: leader.leads or other.leads)
    assert leader.told[:2] == [("elected", 1), ("lost", 1)]
    assert [leader.leads, other.leads].count(True) == 1


def test_the_loss_is_known_at_once_though_on_elected_still_runs() -> None:
    store, running, go_on = MemoryStore(), threading.Event(), threading.Event()
    order: list[str] = []

    def on_elected(epoch: int, fence: Fence) -> None:
        running.set()
        assert go_on.wait(15)
        order.append("elected")

    election = Election(
        store, LEADER, EPOCH, lambda epoch: b"one", on_elected, lambda: order.append("lost")
    )
    election.start()
    assert running.wait(15)
    store.suspend()
    assert not election.leading
    go_on.set()
    election.close()
    assert order == ["elected", "lost"]


def test_callbacks_may_call_the_store_and_close_the_election(kit: Kit) -> None:
    store, lost = kit.open(), threading.Event()

    def on_elected(epoch: int, fence: Fence) -> None:
        store.put("/decided", b"x", fence=fence)
        election.close()

    def on_lost() -> None:
        assert store.get("/decided") is not None
        lost.set()

    election = Election(store, LEADER, EPOCH, lambda epoch: b"one", on_elected, on_lost)
    election.start()
    assert lost.wait(15)
    assert store.get(LEADER) is None


def test_an_epoch_that_is_no_number_lets_nobody_lead_until_it_is_gone(
    kit: Kit, start: Start
) -> None:
    store = kit.open()
    store.put(EPOCH, b"first")
    candidate = start(store)
    assert store.get(LEADER) is None
    store.delete(EPOCH)
    eventually(lambda: candidate.told == [("elected", 1)])
