"""What a URL names, and whether it is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.zookeeper import TOKEN, ZooKeeperServer
from stoker.placement import zookeeper_store
from stoker.placement.errors import BadRequest, CoordinationLost
from stoker.placement.stores import open_store, probe_store


def test_a_probe_finds_the_sqlite_store_that_was_opened(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/store.sqlite"
    assert not probe_store(url, TOKEN)

    open_store(url, TOKEN).close()
    assert probe_store(url, TOKEN)


def test_a_probe_refuses_a_database_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "store.sqlite").write_bytes(b"")

    with pytest.raises(CoordinationLost, match="tables of something else"):
        probe_store(f"sqlite://{tmp_path}/store.sqlite", TOKEN)


def test_a_probe_of_zookeeper_makes_nothing(zookeeper_server: ZooKeeperServer) -> None:
    url = f"zookeeper://{zookeeper_server.hosts}/probed"
    assert not probe_store(url, TOKEN)
    assert not probe_store(url, TOKEN)

    open_store(url, TOKEN).close()
    assert probe_store(url, TOKEN)


def test_a_zookeeper_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zookeeper_store, "CALL_SECONDS_MAX", 0.3)

    with pytest.raises(CoordinationLost, match="Expected an answer of ZooKeeper"):
        probe_store("zookeeper://127.0.0.1:1/stoker", TOKEN)


@pytest.mark.parametrize("url", ["redis://h/0", "sqlite://h/x", "zookeeper:///x", "sqlite:///x?y"])
def test_a_url_of_no_store_is_refused(url: str) -> None:
    with pytest.raises(BadRequest, match="Expected the URL of a store"):
        probe_store(url, TOKEN)
