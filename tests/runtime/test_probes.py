"""Functions that are asked whether they are ready and well, and what comes of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from harness.workers import ZygoteProcess, worker
from stoker.placement.errors import FunctionError, InstanceLost, StartFailed
from stoker.placement.records import FunctionRecord, Scaling
from stoker.placement.spec_probes import HEALTH, READY, Probe
from stoker.runtime.handlers.http import Request, Response
from stoker.runtime.health import unhealthy
from stoker.runtime.readiness import Readiness

PROBE = Probe("/ready?deep=1", 0.0, 0.01, 0.1, 2, 3)
FUNCTION = FunctionRecord("probed", "ns", "image", scaling=Scaling(concurrency=1))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.005)


def test_a_function_is_ready_after_so_many_good_answers_and_not_after_so_many_bad_ones() -> None:
    asked: list[Request] = []
    answers = [500, 200, 503, 200, 200]

    async def handler(request: Request) -> Response:
        asked.append(request)
        status = answers[min(len(asked), len(answers)) - 1]
        if status == 503:
            raise FunctionError("not yet")
        return Response(status)

    async def story() -> None:
        readiness = Readiness(PROBE, handler)
        await readiness.begin()
        assert (len(asked), readiness.holds) == (5, True)
        assert (asked[0].method, asked[0].path, asked[0].query) == ("GET", "/ready", "deep=1")
        following = asyncio.ensure_future(readiness.follow())
        answers[-1] = 404
        await until(lambda: not readiness.holds)
        assert len(asked) == 5 + PROBE.failures
        answers[-1] = 302
        await until(lambda: readiness.holds)
        following.cancel()

    asyncio.run(story())


def test_an_answer_that_does_not_come_in_time_is_none() -> None:
    async def handler(request: Request) -> Response:
        await asyncio.sleep(60)
        return Response()

    async def story() -> None:
        beginning = asyncio.ensure_future(Readiness(PROBE, handler).begin())
        done, _ = await asyncio.wait({beginning}, timeout=0.5)
        assert not done
        beginning.cancel()

    asyncio.run(story())


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def verdict(serve: Serve) -> Exception:
    """What comes of asking a server."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        async with asyncio.timeout(10):
            return await unhealthy("f.ns", PROBE, f"{host}:{port}", "own-token")
    finally:
        server.close()
        await asyncio.sleep(0.05)


def test_an_instance_that_was_well_and_is_no_longer_is_lost() -> None:
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        status = b"200 OK" if len(heads) < 3 else b"500 Broken"
        writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    found = asyncio.run(verdict(serve))
    assert isinstance(found, InstanceLost)
    assert "3 times in a row: status 500" in str(found)
    assert len(heads) == 2 + PROBE.failures
    assert heads[0].startswith(b"GET /ready?deep=1 HTTP/1.1\r\n")
    assert b"X-Stoker-Token: own-token\r\n" in heads[0]


@pytest.mark.parametrize("said", [b"", b"nonsense\r\n", b"SSH-2.0 1\r\n", None])
def test_an_instance_that_was_never_well_has_not_started(said: bytes | None) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if said is None:
            await reader.read()  # it hangs, until nobody waits any more
        else:
            writer.write(said)
        writer.close()

    assert isinstance(asyncio.run(verdict(serve)), StartFailed)


HANDLER = """
import time
from pathlib import Path

READY = Path(__file__).with_name("ready")

def handle(event, context):
    if event.path == "/ready":
        return {"statusCode": 200 if READY.exists() else 500}
    if event.path == "/slow":
        time.sleep(0.5)
    return event.path
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "handler.py").write_text(HANDLER)
    return folder


def test_calls_wait_until_the_function_says_that_it_is_ready_and_later_go_elsewhere(
    zygote: ZygoteProcess, tmp_path: Path, code: Path
) -> None:
    settings = {"path": "/ready", "periodSeconds": "100ms", "failureThreshold": "2"}
    annotations = {READY + key: value for key, value in settings.items()}
    function = replace(FUNCTION, annotations=annotations)
    with worker(zygote, function, tmp_path / "w", code_dir=code) as running:
        assert running.call("/_/ready", method="GET")[0] == 503
        with pytest.raises(AssertionError, match="no status"):
            running.status(0.5)
        (code / "ready").touch()
        assert running.status().event == "serving"
        assert running.call("/x")[:2] == (200, b"/x")
        assert running.call("/_/ready", method="GET")[0] == 200
        (code / "ready").unlink()
        deadline = time.monotonic() + 10
        status = 200
        while status == 200 and time.monotonic() < deadline:
            status, _, headers = running.call("/x")
        assert (status, headers["x-stoker-misdirected"]) == (421, "1")
        assert "Not ready: GET /ready: status 500." in running.log()


def test_a_question_takes_no_turn_of_a_call(
    zygote: ZygoteProcess, tmp_path: Path, code: Path
) -> None:
    function = replace(FUNCTION, annotations={HEALTH + "path": "/live"})
    with worker(zygote, function, tmp_path / "w", code_dir=code) as running:
        running.status()
        with ThreadPoolExecutor(1) as thread:
            slow = thread.submit(running.call, "/slow")
            statuses = set()
            while not slow.done():
                statuses.add(running.call("/_/ready", method="GET")[0])
                probe = running.call("/live", method="GET", headers={"X-Stoker-Probe": "1"})
                assert probe[:2] == (200, b"/live")
            assert slow.result()[0] == 200
        assert 429 in statuses
        assert running.call("/_/health", method="GET")[0] == 200
