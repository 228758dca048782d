from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from stoker.placement.errors import FunctionError, StartFailed
from stoker.runtime.handlers import process
from stoker.runtime.handlers.http import Request, Response
from stoker.runtime.handlers.process import ProcessHandler

ENVIRONMENT = {"PATH": os.environ["PATH"], "OWN": "kept"}
REQUEST = Request(
    "PUT",
    "/a/b",
    "x=1",
    (
        ("host", "gateway"),
        ("x-thing", "one"),
        ("x-thing", "two"),
        ("x-stoker-token", "secret"),
        ("x-name", "gr\xfc\xdfe"),
    ),
    b"the body",
)


def _call(
    tmp_path: Path,
    script: str,
    request: Request = REQUEST,
    **environment: str,
) -> Response:
    path = tmp_path / "answer.sh"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    handler = ProcessHandler(["./answer.sh"], tmp_path, ENVIRONMENT | environment)

    async def scenario() -> Response:
        return await handler(request)

    return asyncio.run(scenario())


def test_the_request_is_in_the_environment_and_the_body_on_standard_input(tmp_path: Path) -> None:
    answer = _call(tmp_path, "env; echo body=$(cat); pwd")

    assert isinstance(answer.body, bytes)
    lines = answer.body.splitlines()
    for expected in (
        b"Http_Method=PUT",
        b"Http_Path=/a/b",
        b"Http_Query=x=1",
        b"Http_Host=gateway",
        b"Http_Content_Length=8",
        b"Http_X_Thing=one",
        b"Http_X_Name=gr\xfc\xdfe",
        b"OWN=kept",
        b"body=the body",
        str(tmp_path).encode(),
    ):
        assert expected in lines
    assert b"secret" not in answer.body


@pytest.mark.parametrize(
    ("script", "headers", "environment", "expected"),
    [
        ("echo text", (), {}, "text/plain; charset=utf-8"),
        ("printf '\\377'", (), {}, "application/octet-stream"),
        ("echo '{}'", (("content-type", "application/json"),), {}, "application/json"),
        ("echo a", (("content-type", "a/b"),), {"content_type": "text/csv"}, "text/csv"),
    ],
)
def test_the_content_type_is_the_stated_one_or_the_requests_or_a_guess(
    tmp_path: Path,
    script: str,
    headers: tuple[tuple[str, str], ...],
    environment: dict[str, str],
    expected: str,
) -> None:
    answer = _call(tmp_path, script, Request("POST", "/", "", headers, b""), **environment)

    assert (answer.status, dict(answer.headers)["content-type"]) == (200, expected)


def test_an_exit_code_is_a_500_and_standard_error_goes_to_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FunctionError, match="found exit code 3"):
        _call(tmp_path, "echo answer; echo private >&2; exit 3")
    failed = capfd.readouterr().err
    _call(tmp_path, "printf 12345")
    succeeded = capfd.readouterr().err

    assert failed == "Forking fprocess.\nprivate\nfprocess ended with exit code 3.\n"
    assert succeeded.startswith("Forking fprocess.\nWrote 5 Bytes - Duration: ")


@pytest.mark.parametrize(
    ("environment", "headers"),
    [
        ({"exec_timeout": "300ms"}, ()),
        ({"exec_timeout": "0"}, (("x-timeout", "300ms"),)),
        ({}, (("x-timeout", "0.3"),)),
    ],
)
def test_after_exec_timeout_the_whole_process_group_is_gone(
    tmp_path: Path, environment: dict[str, str], headers: tuple[tuple[str, str], ...]
) -> None:
    began = time.monotonic()
    answer = _call(
        tmp_path,
        "sleep 60 & echo $! > child; wait",
        Request("POST", "/", "", headers, b""),
        **environment,
    )

    assert answer.status == 408
    assert time.monotonic() - began < 5.0
    _assert_gone(int((tmp_path / "child").read_text()))


def test_a_client_that_leaves_ends_the_process_group(tmp_path: Path) -> None:
    (tmp_path / "answer.sh").write_text("#!/bin/sh\nsleep 60 & echo $! > child; wait\n")
    handler = ProcessHandler(["sh", "answer.sh"], tmp_path, ENVIRONMENT)

    async def scenario() -> None:
        call = asyncio.ensure_future(handler(REQUEST))
        while not (tmp_path / "child").is_file() or not (tmp_path / "child").read_text():
            await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.wait({call})
        assert call.cancelled()

    asyncio.run(scenario())
    _assert_gone(int((tmp_path / "child").read_text()))


def test_what_a_process_leaves_behind_ends_with_its_request(tmp_path: Path) -> None:
    _call(tmp_path, "sleep 60 > /dev/null & echo $! > child")
    _assert_gone(int((tmp_path / "child").read_text()))


def test_an_answer_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "ANSWER_BYTES_MAXIMUM", 1000)
    with pytest.raises(FunctionError, match="at most 1000 bytes"):
        _call(tmp_path, "yes")


def test_many_requests_leave_no_descriptor_and_no_process(tmp_path: Path) -> None:
    _call(tmp_path, "cat")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):
        assert _call(tmp_path, "cat").body == b"the body"
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()

    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert not [pid for pid in children if b"answer" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        (["not-there-at-all"], {}, "the program 'not-there-at-all' of fprocess"),
        (["./absent.sh"], {}, r"the program './absent.sh' of fprocess"),
        ([], {}, "the program '' of fprocess"),
        (["cat"], {"exec_timeout": "soon"}, "exec_timeout, found 'soon'"),
    ],
)
def test_a_process_that_cannot_run_fails_the_start(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], expected: str
) -> None:
    with pytest.raises(StartFailed, match=expected):
        ProcessHandler(arguments, tmp_path, ENVIRONMENT | environment)


def _assert_gone(pid: int) -> None:
    """The process has ended; whoever inherits it may take a moment to reap it."""
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return
        except FileNotFoundError:
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} lives")
