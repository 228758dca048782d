"""The state directory, the lock, the sizes; the whole of `stoker up` is in tests/e2e."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from stoker.deploy.up import gateway_socket, prepare_state, remove_sockets
from stoker.deploy.up_settings import UpSettings, default_store_url, parse_size_bytes
from stoker.placement.errors import BadRequest, Conflict, StorageFull
from stoker.placement.state_lock import lock_state


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1073741824", 1 << 30),
        ("2GiB", 2 << 30),
        ("2gib", 2 << 30),
        ("2Gi", 2 << 30),
        ("1.5 GiB", 3 << 29),
        ("500MB", 500_000_000),
        ("4k", 4000),
        ("7B", 7),
    ],
)
def test_a_size_is_read(text: str, size_bytes: int) -> None:
    assert parse_size_bytes(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1iB", "1 2", "1PB", "0x10", "inf"])
def test_a_bad_size_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="Expected a size"):
        parse_size_bytes(text)


def test_the_state_is_for_its_owner_alone(tmp_path: Path) -> None:
    state = tmp_path / "state"
    prepare_state(state)
    prepare_state(state)

    modes = {stat.S_IMODE(p.stat().st_mode) for p in (state, *state.iterdir())}
    assert modes == {0o700}


def test_a_state_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StorageFull, match="Not a directory"):
        prepare_state(tmp_path / "file" / "state")


def test_a_live_state_refuses_a_second_process_and_names_the_first(tmp_path: Path) -> None:
    prepare_state(tmp_path)
    code = (
        "import sys; from pathlib import Path; from stoker.placement.state_lock import lock_state\n"
        "with lock_state(Path(sys.argv[1]), 'up'): print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        expected = f"hold {tmp_path}/run/up.lock, found process {holder.pid}"
        with pytest.raises(Conflict, match=expected), lock_state(tmp_path, "up"):
            pass
        holder.kill()
    with lock_state(tmp_path, "up"):
        pid = (tmp_path / "run" / "up.lock").read_text()
    assert pid == f"{os.getpid()}\n"


def test_a_port_in_use_is_refused_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(Conflict, match=f"Expected port {port}"), gateway_socket(port):
            pass
    with gateway_socket(port), socket.create_connection(("127.0.0.1", port)):
        pass


def test_only_sockets_are_removed(tmp_path: Path) -> None:
    (tmp_path / "pid").write_text("1")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "left.sock"))
        remove_sockets(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["pid"]


def test_settings_become_the_environment_of_the_processes() -> None:
    state = Path("/var/lib/stoker")
    settings = UpSettings(state, 8081, default_store_url(state), dram_bytes=1 << 30)

    assert settings.environment({"PATH": "/bin", "STOKER_STATE": "other"}) == {
        "PATH": "/bin",
        "STOKER_STATE": "/var/lib/stoker",
        "STOKER_STORE": "sqlite:///var/lib/stoker/store.sqlite",
        "STOKER_CLUSTER_TOKEN_FILE": "/var/lib/stoker/auth/cluster-token",
        "STOKER_GATEWAY_BIND": "127.0.0.1:8081",
        "STOKER_DRAM_BYTES": "1073741824",
    }
