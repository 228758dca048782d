"""What only the ZooKeeper store does: a server that may be away, silent or gone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kazoo.client import KazooClient
from kazoo.exceptions import NoAuthError
from kazoo.security import OPEN_ACL_UNSAFE

import harness.zookeeper
from harness.proxy import Proxy
from harness.waiting import eventually
from harness.zookeeper import TOKEN, ZooKeeperServer
from stoker.placement import zookeeper_store
from stoker.placement.errors import BadRequest, CoordinationLost, Unauthorized
from stoker.placement.store import Change, Entry, StoreState
from stoker.placement.stores import open_store, probe_store
from stoker.placement.zookeeper_store import ZooKeeperStore
from stoker.placement.zookeeper_watch import entry_znode, folder_znode, of_znode

SESSION_SECONDS = 2.0
CALL_SECONDS = 3.0


@pytest.fixture
def proxy(zookeeper_server: ZooKeeperServer) -> Iterator[Proxy]:
    proxy = Proxy(zookeeper_server.hosts)
    yield proxy
    proxy.close()


@pytest.fixture
def chroot(request: pytest.FixtureRequest) -> str:
    return f"/{request.node.name}"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls give up earlier than in production."""
    monkeypatch.setattr(zookeeper_store, "CALL_SECONDS_MAX", CALL_SECONDS)


@pytest.fixture
def store(proxy: Proxy, chroot: str) -> Iterator[ZooKeeperStore]:
    store = ZooKeeperStore(proxy.hosts, chroot, TOKEN, session_seconds=SESSION_SECONDS)
    yield store
    store.close()


@pytest.fixture
def other(zookeeper_server: ZooKeeperServer, chroot: str) -> Iterator[ZooKeeperStore]:
    """A session that the proxy does not cut."""
    store = ZooKeeperStore(zookeeper_server.hosts, chroot, TOKEN, session_seconds=SESSION_SECONDS)
    yield store
    store.close()


def present(changes: list[Change]) -> dict[str, bytes]:
    last = {change.path: change.entry for change in changes}
    return {path: entry.value for path, entry in last.items() if entry}


@pytest.mark.parametrize(
    ("path", "znode"), [("/a", "/a"), ("/a/b", "/a~/b"), ("/a.b/c-d/e", "/a.b~/c-d~/e")]
)
def test_an_entry_lies_below_marked_folders(path: str, znode: str) -> None:
    assert (entry_znode(path), of_znode(znode)) == (znode, path)


@pytest.mark.parametrize(
    ("folder", "znode"), [("/", ""), ("/a/", "/a~"), ("/a.b/c-d/", "/a.b~/c-d~")]
)
def test_a_folder_is_marked(folder: str, znode: str) -> None:
    assert (folder_znode(folder), of_znode(znode)) == (znode, folder)


def test_a_lost_connection_suspends_and_its_return_tells_what_changed_meanwhile(
    store: ZooKeeperStore, other: ZooKeeperStore, proxy: Proxy
) -> None:
    states: list[StoreState] = []
    changes: list[Change] = []
    store.on_state(states.append)
    for name in ("changed", "deleted", "same"):
        other.put(f"/a/{name}", b"before")
    store.watch("/a", changes.append)

    proxy.cut()
    eventually(lambda: states == [StoreState.CONNECTED, StoreState.SUSPENDED])
    other.put("/a/changed", b"after")
    other.put("/a/deep/new", b"after")
    other.delete("/a/deleted")
    proxy.restore()

    eventually(lambda: states[-1] is StoreState.CONNECTED)
    assert states == [StoreState.CONNECTED, StoreState.SUSPENDED, StoreState.CONNECTED]
    assert present(changes) == {
        "/a/changed": b"after",
        "/a/deep/new": b"after",
        "/a/same": b"before",
    }
    assert changes.count(Change("/a/same", Entry("/a/same", b"before", 0))) == 1
    other.put("/a/deep/new", b"later")
    eventually(lambda: present(changes)["/a/deep/new"] == b"later")


def test_an_expired_session_is_lost_and_its_entries_may_be_written_again(
    store: ZooKeeperStore, other: ZooKeeperStore, proxy: Proxy
) -> None:
    states: list[StoreState] = []
    changes: list[Change] = []
    store.put("/a/mine", b"x", ephemeral=True)
    store.on_state(states.append)
    store.watch("/a", changes.append)

    proxy.cut()
    eventually(lambda: other.get("/a/mine") is None, seconds=SESSION_SECONDS * 3)
    proxy.restore()

    eventually(lambda: states[-1] is StoreState.CONNECTED and len(states) > 1)
    assert states[1:] == [StoreState.SUSPENDED, StoreState.LOST, StoreState.CONNECTED]
    assert present(changes) == {}
    assert store.put("/a/mine", b"y", ephemeral=True) == 0
    eventually(lambda: present(changes) == {"/a/mine": b"y"})


@pytest.mark.usefixtures("quick")
def test_calls_fail_within_their_deadline_while_there_is_no_connection(
    store: ZooKeeperStore, proxy: Proxy
) -> None:
    store.put("/a", b"x")
    proxy.cut()
    for call in (lambda: store.get("/a"), lambda: store.put("/a", b"y")):
        begun = time.monotonic()
        with pytest.raises(CoordinationLost, match="Expected"):
            call()
        assert time.monotonic() - begun < CALL_SECONDS + 1
    proxy.restore()
    eventually(lambda: store.get("/a"))


def test_a_read_outlasts_a_short_interruption(store: ZooKeeperStore, proxy: Proxy) -> None:
    store.put("/a", b"x")
    proxy.cut()
    proxy.restore()
    assert store.get("/a") == Entry("/a", b"x", 0)


@pytest.mark.usefixtures("quick")
def test_a_silent_server_suspends_and_calls_fail_within_their_deadline(
    own_zookeeper_server: ZooKeeperServer,
) -> None:
    store = ZooKeeperStore(own_zookeeper_server.hosts, "/s", TOKEN, session_seconds=SESSION_SECONDS)
    states: list[StoreState] = []
    store.on_state(states.append)
    own_zookeeper_server.suspend()
    begun = time.monotonic()
    with pytest.raises(CoordinationLost):
        store.put("/a", b"x")
    assert time.monotonic() - begun < CALL_SECONDS + 1
    eventually(lambda: states[-1] is StoreState.SUSPENDED)
    own_zookeeper_server.resume()
    eventually(lambda: states[-1] is StoreState.CONNECTED, seconds=10)
    assert store.put("/b", b"y") == 0
    store.close()


def test_a_server_that_dies_and_starts_again_loses_nothing(
    own_zookeeper_server: ZooKeeperServer,
) -> None:
    store = ZooKeeperStore(own_zookeeper_server.hosts, "/s", TOKEN, session_seconds=10)
    states: list[StoreState] = []
    changes: list[Change] = []
    store.on_state(states.append)
    store.watch("/a", changes.append)
    store.put("/a/b", b"x")
    own_zookeeper_server.kill()
    eventually(lambda: states[-1] is StoreState.SUSPENDED)
    own_zookeeper_server.start()
    eventually(lambda: states[-1] is StoreState.CONNECTED)
    assert store.put("/a/b", b"y", version=0) == 1
    eventually(lambda: present(changes) == {"/a/b": b"y"})
    store.close()


@pytest.mark.usefixtures("quick")
def test_a_server_that_is_not_there_is_coordination_lost(proxy: Proxy) -> None:
    proxy.cut()
    begun = time.monotonic()
    with pytest.raises(CoordinationLost, match=f"ZooKeeper at {proxy.hosts} within"):
        ZooKeeperStore(proxy.hosts, "/s", TOKEN)
    assert time.monotonic() - begun < CALL_SECONDS + 2


def test_folders_that_a_foreign_hand_removed_are_made_again(
    store: ZooKeeperStore, chroot: str
) -> None:
    changes: list[Change] = []
    store.put("/a/b/c", b"x")
    store.watch("/a", changes.append)
    store._client.delete(f"{chroot}/a~/b~", recursive=True)
    eventually(lambda: present(changes) == {})
    assert store.put("/a/b/c", b"y") == 0
    eventually(lambda: present(changes) == {"/a/b/c": b"y"})


def test_open_store_opens_what_the_url_names(zookeeper_server: ZooKeeperServer) -> None:
    store = open_store(f"zookeeper://{zookeeper_server.hosts}/one/two", TOKEN)
    store.put("/a/b", b"x")
    store.close()
    above = ZooKeeperStore(zookeeper_server.hosts, "/one", TOKEN)
    assert above._client.get("/one/two/a~/b")[0] == b"x"
    above.close()


def test_a_store_without_java_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness.zookeeper, "JAR", tmp_path / "zookeeper.jar")
    with pytest.raises(RuntimeError, match="apt-get install zookeeper"):
        ZooKeeperServer(tmp_path)


def test_who_has_not_the_clusters_token_neither_reads_nor_writes(
    zookeeper_server: ZooKeeperServer, store: ZooKeeperStore, chroot: str
) -> None:
    store.put("/a/b", b"secret")
    store.put("/e", b"here", ephemeral=True)
    stranger = KazooClient(hosts=zookeeper_server.hosts)
    stranger.start()
    try:
        attempts = [
            lambda: stranger.get(f"{chroot}/a~/b"),
            lambda: stranger.get_children(chroot),
            lambda: stranger.set(f"{chroot}/a~/b", b"forged"),
            lambda: stranger.create(f"{chroot}/forged", b""),
            lambda: stranger.create(f"{chroot}/a~/forged", b""),
            lambda: stranger.delete(f"{chroot}/a~/b"),
            lambda: stranger.delete(f"{chroot}/e"),
            lambda: stranger.set_acls(f"{chroot}/a~/b", OPEN_ACL_UNSAFE),
        ]
        for attempt in attempts:
            with pytest.raises(NoAuthError):
                attempt()
    finally:
        stranger.stop()
        stranger.close()
    assert store.get("/a/b") == Entry("/a/b", b"secret", 0)


def test_another_token_is_refused_at_the_start(
    zookeeper_server: ZooKeeperServer, store: ZooKeeperStore, chroot: str
) -> None:
    with pytest.raises(Unauthorized, match="another cluster token"):
        ZooKeeperStore(zookeeper_server.hosts, chroot, "another-token-than-the-others")
    with pytest.raises(Unauthorized, match="another cluster token"):
        probe_store(f"zookeeper://{zookeeper_server.hosts}{chroot}", "another-token")


def test_zookeeper_is_not_told_the_token_itself(store: ZooKeeperStore, chroot: str) -> None:
    acls, _ = store._client.get_acls(chroot)
    assert [acl.id.id.partition(":")[0] for acl in acls] == ["stoker"]
    shown = {secret for _, secret in store._client.auth_data}
    assert not any(TOKEN in secret for secret in shown)


def test_a_url_with_a_password_is_refused(zookeeper_server: ZooKeeperServer) -> None:
    with pytest.raises(BadRequest, match="Expected the URL of a store") as refused:
        open_store(f"zookeeper://stoker:hidden@{zookeeper_server.hosts}/x", TOKEN)
    assert "hidden" not in str(refused.value)
