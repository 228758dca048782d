from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.workers import WorkerProcess, ZygoteProcess
from stoker.placement.errors import BadRequest
from stoker.placement.records import FunctionRecord
from stoker.runtime.worker_start import (
    MESSAGE_BYTES_MAXIMUM,
    CheckpointStart,
    WorkerStart,
    ZygoteEvent,
    ZygoteStart,
    decode_event,
    decode_start,
    encode_event,
    encode_start,
    zygote_environment,
)

FUNCTION = FunctionRecord("shout", "ns", "image")


@pytest.fixture(scope="module")
def zygote() -> Iterator[ZygoteProcess]:
    made = ZygoteProcess()
    yield made
    made.close()


def _running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def _sockets(pid: int) -> set[str]:
    links = {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()}
    return {link for link in links if link.startswith("socket:")}


def _start(folder: Path, zygote: ZygoteProcess, instance_id: str = "i-1") -> WorkerProcess:
    folder.mkdir(exist_ok=True)
    (folder / "handler.py").write_text("def handle(event, context):\n    return 'served'\n")
    return WorkerProcess(
        zygote, FUNCTION, folder / "work", code_dir=folder, instance_id=instance_id
    )


def test_a_start_survives_its_encoding() -> None:
    checkpoint = CheckpointStart("/files", "/layout", (3, 1, 2), 123, "d")
    start = WorkerStart("i-1", FUNCTION, "t", 2, "/work", 1.5, None, checkpoint)

    assert decode_start(encode_start(start)) == start
    assert start.descriptor_names == ("listen", "log", "status", "pool", "progress")
    other = ZygoteStart("environment-1", "/environment")
    assert decode_start(encode_start(other)) == other


def test_a_start_too_long_for_a_packet_is_refused() -> None:
    function = FunctionRecord("f", "ns", "i", environment={"A": "x" * MESSAGE_BYTES_MAXIMUM})

    with pytest.raises(BadRequest, match="start message"):
        encode_start(WorkerStart("i-1", function, "t", 1, "/work", 0.0))


def test_the_environment_of_a_zygote_has_no_secrets_and_waits_passively() -> None:
    found = zygote_environment({"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "s", "STOKER_STATE": "x"})

    assert found["PATH"] == "/bin"
    assert found["OMP_WAIT_POLICY"] == "passive"
    assert not [name for name in found if name.startswith(("AWS_", "STOKER_"))]


def test_an_event_survives_its_encoding() -> None:
    event = ZygoteEvent("exited", "i-1", 12, -9)

    assert decode_event(encode_event(event)) == event


def test_workers_are_forked_serve_and_are_reported_when_they_end(
    zygote: ZygoteProcess, tmp_path: Path
) -> None:
    first = _start(tmp_path / "a", zygote, "i-1")
    second = _start(tmp_path / "b", zygote, "i-2")

    assert first.call("/")[1] == second.call("/")[1] == b"served"
    assert first.stop(signal.SIGTERM) == 0
    assert second.stop(signal.SIGKILL) == -signal.SIGKILL


def test_the_zygote_has_one_thread_and_a_worker_none_of_its_descriptors(
    zygote: ZygoteProcess, tmp_path: Path
) -> None:
    running = _start(tmp_path / "a", zygote)
    running.status()

    threads = list(Path(f"/proc/{zygote.process.pid}/task").iterdir())
    shared = _sockets(running.pid) & _sockets(zygote.process.pid)
    running.stop()
    assert len(threads) == 1
    assert not shared


def test_a_message_that_is_no_start_is_refused_and_the_zygote_lives(
    zygote: ZygoteProcess, tmp_path: Path
) -> None:
    zygote.send(b'{"op": "dance"}', [])
    assert zygote.event().event == "refused"
    start = WorkerStart("i-9", FUNCTION, "t", 1, str(tmp_path), 0.0)
    zygote.send(encode_start(start), [0])
    refused = zygote.event()

    assert (refused.event, refused.instance_id) == ("refused", "i-9")
    assert refused.error is not None
    assert "3 descriptors" in refused.error["cause"]
    running = _start(tmp_path / "a", zygote)
    assert running.call("/")[1] == b"served"
    running.stop()


def test_the_zygote_ends_with_its_socket_and_takes_its_workers_along(tmp_path: Path) -> None:
    zygote = ZygoteProcess()
    running = _start(tmp_path / "a", zygote)
    running.status()

    zygote.close()

    assert zygote.process.returncode == 0
    deadline = time.monotonic() + 5.0
    while _running(running.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _running(running.pid)
