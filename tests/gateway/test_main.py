"""The process: what it refuses to start with, and how it ends."""

from __future__ import annotations

import asyncio
import signal
import stat
import subprocess
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from harness import web
from harness.gateway import Bench, stream
from stoker.gateway.settings import Settings
from stoker.placement.errors import BadRequest, StokerError
from stoker.placement.secrets_file import read_or_create_secret


def test_a_stream_is_finished_after_sigterm_and_the_process_ends(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "state").start()
    try:

        async def slow() -> AsyncIterator[bytes]:
            for number in range(5):
                yield b"data: %d\n\n" % number
                await asyncio.sleep(0.2)

        function = bench.function()
        worker = bench.worker(lambda request: stream(request, slow(), "text/event-stream"))
        bench.instance(function, worker.address)
        connection, path = web.connect(f"{bench.url}/function/{function.name}")
        connection.request("GET", path)
        events = web.events(connection.getresponse())
        assert next(events) == "0"
        assert bench.process is not None
        bench.process.send_signal(signal.SIGTERM)
        assert list(events) == ["1", "2", "3", "4"]
        connection.close()
        assert bench.process.wait(10) == 0
        assert '"event": "gateway_stopped"' in bench.log
        assert bench.password not in bench.log
        assert bench.token not in bench.log
    finally:
        bench.stop()


def test_a_public_address_without_a_password_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    process = bench.spawn(STOKER_GATEWAY_BIND=f"0.0.0.0:{bench.port}")
    assert process.wait(20) == 1
    bench.loop.close()
    assert "Expected a password" in bench.log
    assert "Traceback" not in bench.log
    assert not (tmp_path / "auth").exists()


def test_a_store_that_cannot_be_opened_stops_the_start(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    process = bench.spawn(STOKER_STORE="mystery://x")
    try:
        assert process.wait(20) != 0
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    bench.loop.close()
    assert "Expected the URL of a store" in bench.log


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STOKER_GATEWAY_BIND", "8080"),
        ("STOKER_GATEWAY_BIND", "127.0.0.1:x"),
        ("STOKER_BODY_BYTES_MAXIMUM", "0"),
        ("STOKER_BODY_BYTES_MAXIMUM", "1MiB"),
        ("STOKER_LOG_LEVEL", "loud"),
    ],
)
def test_a_bad_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(BadRequest, match=name):
        Settings.from_environment({name: value})


def test_a_secret_is_made_once_by_whoever_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "auth" / "password"
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(read_or_create_secret(path))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found[0]) >= 40
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_a_secret_that_is_too_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("short\n")
    with pytest.raises(StokerError, match="found 5"):
        read_or_create_secret(path)


def test_the_gateway_starts_within_a_few_seconds(bench: Bench) -> None:
    began = time.monotonic()
    assert bench.call("HEAD", "/healthz").status == 200
    assert time.monotonic() - began < 1
