"""What user code in a real worker can reach: its own work, and nothing of the node or of others."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.workers import WorkerProcess, ZygoteProcess, sandbox_levels, worker
from stoker.placement.records import FunctionRecord, Scaling
from stoker.runtime.worker_start import SandboxStart, WorkerStart, encode_start

FUNCTION = FunctionRecord("boxed", "ns", "image", scaling=Scaling(concurrency=2))
HANDLER = """
import os
from pathlib import Path

def attempt(act):
    try:
        found = act()
    except OSError as error:
        return type(error).__name__
    return found if isinstance(found, (str, int, list)) else "done"

def handle(event, context):
    told = {}
    exec(event.body, globals() | {"told": told})
    return {"body": told}
"""


def code_dir(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "handler.py").write_text(HANDLER)
    return folder


def ask(running: WorkerProcess, code: str) -> dict[str, Any]:
    status, body, _ = running.call("/", code.encode())
    assert status == 200, (body, running.log())
    told: dict[str, Any] = json.loads(body)
    return told


@pytest.fixture(autouse=True)
def whole_sandbox() -> None:
    missing = {"mounts", "landlock", "seccomp"} - {*sandbox_levels()}
    if missing:
        pytest.skip(f"this machine has no {', '.join(sorted(missing))}; see `stoker doctor`")


def test_user_code_reaches_neither_the_node_nor_another_function(
    zygote: ZygoteProcess, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    (state / "auth").mkdir(parents=True)
    (state / "auth" / "cluster-token").write_text("secret")
    (state / "store.sqlite").write_text("records")
    mine, theirs = code_dir(state / "code" / "mine"), code_dir(state / "code" / "theirs")
    code = f"""
told["token"] = attempt(lambda: Path({str(state / "auth/cluster-token")!r}).read_text())
told["store"] = attempt(lambda: Path({str(state / "store.sqlite")!r}).read_bytes().hex())
told["theirs"] = attempt(lambda: Path({str(theirs / "handler.py")!r}).read_text())
told["mine"] = attempt(lambda: Path("handler.py").read_text()[:10])
told["poison"] = attempt(lambda: Path("handler.py").write_text("x"))
told["work"] = attempt(lambda: Path(os.environ["HOME"], "made").write_text("x"))
told["parent"] = attempt(lambda: Path(f"/proc/{{os.getppid()}}/environ").read_text())
told["kill"] = attempt(lambda: os.kill(os.getppid(), 9))
status = Path("/proc/self/status").read_text().split()
told["seccomp"] = status[status.index("Seccomp:") + 1]
told["effective"] = status[status.index("CapEff:") + 1]
"""
    with worker(zygote, FUNCTION, state / "w1", code_dir=mine, hidden=(str(state),)) as running:
        told = ask(running, code)

    assert told.pop("kill") == "PermissionError"
    assert told == {
        "token": "FileNotFoundError",
        "store": "FileNotFoundError",
        "theirs": "FileNotFoundError",
        "mine": "\nimport os",
        "poison": "OSError",  # a read-only file system
        "work": 1,
        "parent": "PermissionError",
        "seccomp": "2",
        "effective": "0" * 16,
    }


def test_two_workers_see_each_a_temporary_folder_of_their_own(
    zygote: ZygoteProcess, tmp_path: Path
) -> None:
    code = code_dir(tmp_path / "code")
    write = """
import tempfile
told["write"] = Path("/tmp/name").write_text("mine") + Path("/dev/shm/name").write_text("mine")
told["same"] = (Path(tempfile.gettempdir()) / "name").read_text()
"""
    look = """
told["tmp"], told["shm"] = Path("/tmp/name").exists(), os.listdir("/dev/shm")
import multiprocessing
told["lock"] = str(type(multiprocessing.Lock()).__name__)
"""
    first = WorkerProcess(zygote, FUNCTION, tmp_path / "w1", code_dir=code, instance_id="i-1")
    second = WorkerProcess(zygote, FUNCTION, tmp_path / "w2", code_dir=code, instance_id="i-2")
    written, seen = ask(first, write), ask(second, look)
    first.stop(9)
    second.stop(9)

    assert written == {"write": 8, "same": "mine"}
    assert seen == {"tmp": False, "shm": [], "lock": "Lock"}
    assert (tmp_path / "w1" / "tmp" / "name").read_text() == "mine"
    assert not Path("/dev/shm/name").exists()


def test_a_program_of_the_machine_runs_in_the_same_sandbox(
    zygote: ZygoteProcess, tmp_path: Path
) -> None:
    code = code_dir(tmp_path / "code")
    program = """
import subprocess
ran = subprocess.run(["sh", "-c", "grep -c . /etc/shadow; unshare -m true; echo ok > $TMPDIR/x;"
                      " cat /tmp/x; grep Seccomp: /proc/self/status"],
                     capture_output=True, text=True)
told["out"], told["err"] = ran.stdout.split(), ran.stderr
"""
    with worker(zygote, FUNCTION, tmp_path / "w", code_dir=code) as running:
        told = ask(running, program)

    assert told["out"] == ["ok", "Seccomp:", "2"]
    assert "shadow: Permission denied" in told["err"]
    assert "Operation not permitted" in told["err"]


def test_a_worker_that_cannot_have_its_sandbox_says_so_and_does_not_start(
    zygote: ZygoteProcess, tmp_path: Path
) -> None:
    (log_read, log), (status_read, status) = os.pipe(), os.pipe()
    start = WorkerStart("i-9", FUNCTION, "t", 1, str(tmp_path / "w"), 0.0, str(tmp_path))
    sandbox = SandboxStart(("no-new-privileges", "moat"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        zygote.send(
            encode_start(replace(start, sandbox=sandbox)),
            [server.fileno(), log, status],
        )
    forked, ended = zygote.event(), zygote.event()
    said, logged = os.read(status_read, 4096), os.read(log_read, 4096)
    for end in (log_read, log, status_read, status):
        os.close(end)

    assert (forked.event, ended.event, ended.status) == ("forked", "exited", 1)
    assert json.loads(said)["error"]["code"] == "start_failed"
    assert b"found 'moat'" in logged
