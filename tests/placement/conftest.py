"""The three stores behind one fixture, and the one ZooKeeper server of a test run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from harness.cluster import Cluster
from harness.store_child import open_for_test
from harness.zookeeper import ZooKeeperServer
from stoker.placement.memory_store import MemoryStore
from stoker.placement.store import Store

# A busy machine is no failure of the code.
hypothesis.settings.register_profile(
    "stoker", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("stoker")
_numbers = itertools.count()


class StoreKit:
    """Opens sessions of one empty store and closes them after the test."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.url = url
        self._memory = MemoryStore()
        self._opened: list[Store] = []

    def open(self) -> Store:
        memory = self.name == "memory"
        store: Store = self._memory.session() if memory else open_for_test(self.url)
        self._opened.append(store)
        return store

    def close(self) -> None:
        for store in self._opened:
            store.close()


@pytest.fixture(scope="session")
def zookeeper_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZooKeeperServer]:
    server = ZooKeeperServer(tmp_path_factory.mktemp("zookeeper"))
    yield server
    server.stop()


@pytest.fixture
def own_zookeeper_server(tmp_path: Path) -> Iterator[ZooKeeperServer]:
    """A server that the test may stop."""
    server = ZooKeeperServer(tmp_path / "zookeeper")
    yield server
    server.stop()


@pytest.fixture
def make_kit(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[str], StoreKit]]:
    kits: list[StoreKit] = []

    def make(name: str) -> StoreKit:
        url = f"sqlite://{tmp_path}/state/store.sqlite"
        if name == "zookeeper":
            server: ZooKeeperServer = request.getfixturevalue("zookeeper_server")
            url = f"zookeeper://{server.hosts}/test{next(_numbers)}"
        kits.append(StoreKit(name, url))
        return kits[-1]

    yield make
    for kit in kits:
        kit.close()


@pytest.fixture(params=["memory", "sqlite", "zookeeper"])
def kit(request: pytest.FixtureRequest, make_kit: Callable[[str], StoreKit]) -> StoreKit:
    return make_kit(request.param)


@pytest.fixture(params=["sqlite", "zookeeper"])
def shared_kit(request: pytest.FixtureRequest, make_kit: Callable[[str], StoreKit]) -> StoreKit:
    """Only stores that several processes share."""
    return make_kit(request.param)


@pytest.fixture
def store(kit: StoreKit) -> Store:
    return kit.open()


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    made.deploy()
    made.join()
    made.elect()
    return made
