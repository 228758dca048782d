"""A function's secrets are files of its own view, and of nobody else's."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from harness.workers import ZygoteProcess, sandbox_levels, start_of, worker
from stoker.placement.errors import StartFailed
from stoker.placement.memory_store import MemoryStore
from stoker.placement.records import FunctionRecord, Scaling, encode
from stoker.placement.secrets import Seal
from stoker.runtime.mounts import SECRETS as SECRETS_FOLDER
from stoker.runtime.secret_files import packed, unpacked
from stoker.runtime.secrets import SecretReader
from stoker.runtime.worker_start import encode_start

FUNCTION = FunctionRecord(
    "keyed", "ns", "image", scaling=Scaling(concurrency=2), secrets=("api-key", "tls.crt")
)
SECRETS = {"api-key": b"canary-text", "tls.crt": b"\x00canary\xff"}
HANDLER = """
import os
from pathlib import Path

def attempt(act):
    try:
        return act()
    except OSError as error:
        return type(error).__name__

def handle(event, context):
    folder = Path("/var/openfaas/secrets")
    return {"body": {
        "names": attempt(lambda: sorted(os.listdir(folder))),
        "text": attempt(lambda: (folder / "api-key").read_text()),
        "raw": attempt(lambda: (folder / "tls.crt").read_bytes().hex()),
        "write": attempt(lambda: (folder / "api-key").write_text("x")),
        "var": attempt(lambda: sorted(os.listdir("/var"))),
        "temporary": attempt(lambda: Path("/var/tmp/own").write_text("x")),
        "environment": "canary" in str(os.environ),
    }}
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "handler.py").write_text(HANDLER)
    return folder


@pytest.fixture
def own_view() -> None:
    if "mounts" not in sandbox_levels():
        pytest.skip("this machine lets nobody mount; see `stoker doctor`")


@pytest.mark.usefixtures("own_view")
def test_secrets_are_files_that_the_function_reads_and_cannot_change(
    zygote: ZygoteProcess, tmp_path: Path, code: Path
) -> None:
    with worker(zygote, FUNCTION, tmp_path / "w", code_dir=code, secrets=SECRETS) as running:
        status, body, _ = running.call("/")
        log = running.log()
    told = json.loads(body)
    assert status == 200
    assert told.pop("write") in ("OSError", "PermissionError")
    assert {"openfaas", "tmp"} >= {*told.pop("var")} or "landlock" in sandbox_levels()
    assert told == {
        "names": ["api-key", "tls.crt"],
        "text": "canary-text",
        "raw": SECRETS["tls.crt"].hex(),
        "temporary": 1,
        "environment": False,
    }
    assert "canary" not in log
    assert not Path("/var/openfaas/secrets/api-key").exists()
    assert not [
        p for p in (tmp_path / "w").rglob("*") if p.is_file() and b"canary" in p.read_bytes()
    ]


@pytest.mark.usefixtures("own_view")
def test_another_function_sees_no_secrets(
    zygote: ZygoteProcess, tmp_path: Path, code: Path
) -> None:
    other = replace(FUNCTION, name="other", secrets=())
    with (
        worker(zygote, FUNCTION, tmp_path / "w1", code_dir=code, secrets=SECRETS) as first,
        worker(zygote, other, tmp_path / "w2", code_dir=code, instance_id="i-2") as second,
    ):
        spy = f"/proc/{first.pid}/root{SECRETS_FOLDER}"
        assert first.call("/")[0] == 200
        told = json.loads(second.call("/")[1])
        (code / "handler.py").write_text(
            "import os\n\ndef handle(event, context):\n"
            f"    try:\n        return str(os.listdir({spy!r}))\n"
            "    except OSError as error:\n        return type(error).__name__\n"
        )
        with worker(zygote, other, tmp_path / "w3", code_dir=code, instance_id="i-3") as third:
            seen = third.call("/")[1]
    assert told["text"] in ("FileNotFoundError", "PermissionError")
    if "landlock" in sandbox_levels():
        assert seen == b"PermissionError"


def test_without_a_view_of_its_own_a_function_with_secrets_does_not_start(
    zygote: ZygoteProcess, tmp_path: Path, code: Path
) -> None:
    (log_read, log), (status_read, status), given = os.pipe(), os.pipe(), packed(SECRETS)
    start = start_of(FUNCTION, tmp_path / "w", code_dir=code)
    levels = tuple(level for level in start.sandbox.levels if level != "mounts")
    start = replace(start, sandbox=replace(start.sandbox, levels=levels))
    with socket.create_server(("127.0.0.1", 0)) as server:
        zygote.send(encode_start(start), [server.fileno(), log, status, given])
    ended = [zygote.event() for _ in range(2)][1]
    said, logged = os.read(status_read, 4096), os.read(log_read, 4096)
    for end in (log_read, log, status_read, status, given):
        os.close(end)

    assert (ended.event, ended.status) == ("exited", 1)
    assert "the level mounts" in json.loads(said)["error"]["cause"]
    assert b"canary" not in said + logged


def test_what_is_packed_for_a_worker_is_what_it_unpacks() -> None:
    assert unpacked(packed(SECRETS)) == SECRETS


def test_the_agent_reads_what_a_function_names_from_the_store() -> None:
    store, seal = MemoryStore(), Seal("token")
    for name, value in SECRETS.items():
        record = seal.close("ns", name, value)
        store.put(record.path, encode(record))
    assert unpacked(SecretReader(store, "token").open(FUNCTION)) == SECRETS
    store.delete("/secrets/ns/tls.crt")
    with pytest.raises(StartFailed, match=r"the secret tls\.crt in ns .* was deleted"):
        SecretReader(store, "token").open(FUNCTION)
