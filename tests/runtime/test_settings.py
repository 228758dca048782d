from __future__ import annotations

from pathlib import Path

import pytest

from stoker.placement.errors import BadRequest
from stoker.runtime.settings import Settings

TOKEN = "a-token-that-is-long-enough"


def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "auth").mkdir()
    (tmp_path / "auth" / "cluster-token").write_text(TOKEN + "\n")
    return {"STOKER_STATE": str(tmp_path), "STOKER_NODE_ID": "n1"}


def test_what_is_not_set_has_a_default(tmp_path: Path) -> None:
    settings = Settings.from_environment(environment(tmp_path))
    assert settings.store_url == f"sqlite://{tmp_path}/store.sqlite"
    assert settings.cluster_token == TOKEN
    assert (settings.bind_host, settings.bind_port) == ("127.0.0.1", 0)
    assert 0 < settings.dram_bytes <= 8 << 30
    assert 0 < settings.ssd_bytes <= 50 << 30
    assert settings.instances_maximum == 16
    assert settings.cores >= 1


def test_what_is_set_holds(tmp_path: Path) -> None:
    given = {"STOKER_AGENT_BIND": "[::1]:99", "STOKER_CORES": "3", "STOKER_DRAM_BYTES": "12345"}
    given["STOKER_ZONE"] = "rack-1"
    settings = Settings.from_environment(environment(tmp_path) | given)
    assert (settings.bind_host, settings.bind_port) == ("::1", 99)
    assert (settings.cores, settings.dram_bytes, settings.zone) == (3, 12345, "rack-1")


@pytest.mark.parametrize(
    ("variable", "value", "cause"),
    [
        ("STOKER_AGENT_BIND", "nowhere", "STOKER_AGENT_BIND"),
        ("STOKER_AGENT_BIND", "0.0.0.0:0", "STOKER_AGENT_BIND"),
        ("STOKER_AGENT_BIND", "127.0.0.1:99999", "STOKER_AGENT_BIND"),
        ("STOKER_NODE_ID", "a/b", "a node id .* found 'a/b'"),
        ("STOKER_ZONE", "rack 1", "a zone .* found 'rack 1'"),
        ("STOKER_CORES", "0", "STOKER_CORES"),
        ("STOKER_DRAM_BYTES", "much", "STOKER_DRAM_BYTES"),
        ("STOKER_LOG_LEVEL", "loud", "STOKER_LOG_LEVEL"),
        ("STOKER_POOL_DESCRIPTOR", "1", "STOKER_POOL_DESCRIPTOR"),
        ("STOKER_POOL_DESCRIPTOR", "seven", "STOKER_POOL_DESCRIPTOR"),
        ("STOKER_CLUSTER_TOKEN_FILE", "/nonexistent/token", "/nonexistent/token"),
    ],
)
def test_a_bad_setting_is_named(tmp_path: Path, variable: str, value: str, cause: str) -> None:
    good = environment(tmp_path)
    with pytest.raises(BadRequest, match=cause):
        Settings.from_environment(good | {variable: value})


def test_a_short_token_is_refused_and_not_shown(tmp_path: Path) -> None:
    good = environment(tmp_path)
    (tmp_path / "auth" / "cluster-token").write_text("hush")
    with pytest.raises(BadRequest) as refusal:
        Settings.from_environment(good)
    assert "hush" not in str(refusal.value)
