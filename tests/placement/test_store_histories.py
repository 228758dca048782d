"""Random concurrent histories: some order of the calls explains every answer, on every store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from harness.histories import Call, explained, record
from harness.seen import Kit
from harness.zookeeper import TOKEN, ZooKeeperEnsemble
from stoker.placement.zookeeper_store import ZooKeeperStore

SESSIONS = 4
CALLS_EACH = 15


@pytest.mark.parametrize("seed", range(20))
def test_some_order_of_the_calls_explains_every_answer(kit: Kit, seed: int) -> None:
    histories = record([kit.open() for _ in range(SESSIONS)], seed, CALLS_EACH)
    # One server answers everything here: reads are held to the time as well.
    assert explained(histories, owners_may_race=kit.name == "zookeeper"), (
        f"seed {seed}: {histories}"
    )


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZooKeeperEnsemble]:
    made = ZooKeeperEnsemble(tmp_path_factory.mktemp("ensemble"))
    yield made
    made.stop()


def sessions(ensemble: ZooKeeperEnsemble, chroot: str, stack: ExitStack) -> list[ZooKeeperStore]:
    """Each session talks to another server, as far as there are servers."""
    hosts = [ensemble.servers[n % 3].hosts for n in range(SESSIONS)]
    opened = [ZooKeeperStore(host, chroot, TOKEN) for host in hosts]
    for store in opened:
        stack.callback(store.close)
    return opened


@pytest.mark.parametrize("seed", range(20))
def test_on_an_ensemble_some_order_explains_all_but_the_lateness_of_reads(
    ensemble: ZooKeeperEnsemble, seed: int
) -> None:
    with ExitStack() as stack:
        stores = sessions(ensemble, f"/calm{seed}", stack)
        histories = record(stores, seed, CALLS_EACH)
    assert explained(histories, reads_may_lag=True, owners_may_race=True), (
        f"seed {seed}: {histories}"
    )


@pytest.mark.parametrize("seed", range(3))
def test_it_does_so_while_the_server_that_orders_writes_is_killed(
    tmp_path: Path, seed: int
) -> None:
    ensemble = ZooKeeperEnsemble(tmp_path / "ensemble")
    with ExitStack() as stack:
        stack.callback(ensemble.stop)
        stores = [ZooKeeperStore(ensemble.hosts, "/killed", TOKEN) for _ in range(SESSIONS)]
        for store in stores:
            stack.callback(store.close)

        def kill() -> None:
            time.sleep(Random(seed).uniform(0.0, 0.1))
            ensemble.leader.kill()

        histories = record(stores, seed, 40, kill)
    assert explained(histories, reads_may_lag=True, owners_may_race=True), (
        f"seed {seed}: {histories}"
    )


def at(call: Call, begun_at: float, ended_at: float, answer: object) -> Call:
    return replace(call, begun_at=begun_at, ended_at=ended_at, answer=answer)


PUT = Call(0, "put", "/b", b"new", version=-1)
GET = Call(1, "get", "/b")


def test_the_check_refuses_a_read_from_before_a_write_that_had_ended() -> None:
    late = [[at(PUT, 0, 1, 0)], [at(GET, 2, 3, None)]]
    assert not explained(late)
    assert explained(late, reads_may_lag=True)
    assert explained([[at(PUT, 0, 2.5, 0)], [at(GET, 2, 3, None)]])


def test_the_check_refuses_two_that_won_the_same_version() -> None:
    again = replace(PUT, session=1)
    assert not explained([[at(PUT, 0, 5, 0)], [at(again, 0, 5, 0)]], reads_may_lag=True)
    assert explained([[at(PUT, 0, 5, 0)], [at(again, 0, 5, "conflict")]])


def test_the_check_refuses_a_session_that_does_not_see_its_own_write() -> None:
    own = replace(GET, session=0)
    assert not explained([[at(PUT, 0, 1, 0), at(own, 2, 3, None)]], reads_may_lag=True)


def test_the_check_lets_a_write_of_unknown_end_have_happened_or_not() -> None:
    unknown = replace(PUT, begun_at=0.0)
    for answer in (None, (0, b"new")):
        assert explained([[unknown], [at(GET, 2, 3, answer)]])
    assert not explained([[unknown], [at(GET, 2, 3, (0, b"other"))]])
