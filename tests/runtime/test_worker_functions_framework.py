"""Functions of functions-framework in a real worker, run by the real package."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from harness.functions import EVENT_HEADERS, EXAMPLES, FUNCTION, STRUCTURED, write_files
from harness.workers import ZygoteProcess, worker


def _main(folder: Path, body: str) -> Path:
    return write_files(folder / "code", {"main.py": f"import functions_framework\n{body}"})


def test_a_functions_framework_example_is_served_with_its_flask_request(
    zygote: ZygoteProcess, tmp_path: Path
) -> None:
    code = EXAMPLES / "functions-framework" / "handler"
    with worker(zygote, FUNCTION, tmp_path / "work", code_dir=code) as running:
        status, body, headers = running.call("/a%20b?name=Ada", b"", method="PUT")

    assert (status, body) == (200, b"Hello Ada, by PUT")
    assert headers["x-path"] == "/a b"
    assert headers["content-type"] == "text/html; charset=utf-8"


def test_an_http_function_that_fails_or_exits_is_a_500_and_serves_on(
    zygote: ZygoteProcess, tmp_path: Path
) -> None:
    code = _main(
        tmp_path,
        "import sys\n"
        "@functions_framework.http\n"
        "def serve(request):\n"
        "    if request.data == b'fail':\n"
        "        raise ValueError('private')\n"
        "    if request.data == b'exit':\n"
        "        sys.exit(3)\n"
        "    return {'k': request.headers.get('X-Stoker-Token')}\n",
    )
    with worker(zygote, FUNCTION, tmp_path / "work", code_dir=code) as running:
        answers = [running.call("/", body) for body in (b"fail", b"exit", b"go")]
        log = running.log()

    assert [status for status, _, _ in answers] == [500, 500, 200]
    assert b"private" not in answers[0][1]
    assert json.loads(answers[2][1]) == {"k": None}
    assert "ValueError: private" in log
    assert "SystemExit: 3" in log


def test_a_flask_stream_leaves_piece_by_piece_and_keeps_its_request(
    zygote: ZygoteProcess, tmp_path: Path
) -> None:
    code = _main(
        tmp_path,
        "import time\n"
        "from flask import Response, request as current, stream_with_context\n"
        "@functions_framework.http\n"
        "def serve(request):\n"
        "    def pieces():\n"
        "        yield 'first\\n'\n"
        "        time.sleep(0.3)\n"
        "        yield current.path + '\\n'\n"
        "    return Response(stream_with_context(pieces()), mimetype='text/event-stream')\n",
    )
    with worker(zygote, FUNCTION, tmp_path / "work", code_dir=code) as running:
        running.status()
        with running.open("/stream") as response:
            first = response.readline()
            arrived = time.monotonic()
            second = response.readline()
            waited = time.monotonic() - arrived

    assert (first, second) == (b"first\n", b"/stream\n")
    assert waited > 0.2


@pytest.mark.parametrize("package", ["functions_framework", "functions_framework.aio"])
def test_a_cloud_event_function_gets_events_of_both_modes(
    zygote: ZygoteProcess, tmp_path: Path, package: str
) -> None:
    define = "async def" if package.endswith("aio") else "def"
    code = _main(
        tmp_path,
        f"import {package} as framework\n"
        "@framework.cloud_event\n"
        f"{define} serve(event):\n"
        "    print('seen', event['id'], event['type'], event.data)\n",
    )
    with worker(zygote, FUNCTION, tmp_path / "work", code_dir=code) as running:
        binary = running.call("/", b'{"n": 1}', headers=EVENT_HEADERS)
        structured = running.call(
            "/",
            json.dumps(STRUCTURED).encode(),
            headers={"Content-Type": "application/cloudevents+json"},
        )
        refused = running.call("/", b"{}", headers={"Content-Type": "application/json"})
        log = running.log()

    assert [binary[0], structured[0], refused[0]] == [200, 200, 400]
    assert log.count("seen 7 order.made {'n': 1}") == 2


def test_a_typed_function_gets_and_gives_its_types(zygote: ZygoteProcess, tmp_path: Path) -> None:
    code = _main(
        tmp_path,
        "class Order:\n"
        "    def __init__(self, n): self.n = n\n"
        "    @staticmethod\n"
        "    def from_dict(fields): return Order(fields['n'])\n"
        "    def to_dict(self): return {'n': self.n}\n"
        "def helper(order): return order\n"
        "@functions_framework.typed(Order)\n"
        "def double(order): return Order(2 * order.n)\n",
    )
    with worker(zygote, FUNCTION, tmp_path / "work", code_dir=code) as running:
        status, body, _ = running.call("/", {"n": 21})
        failed, answer, _ = running.call("/", {"m": 21})
        log = running.log()

    assert (status, json.loads(body)) == (200, {"n": 42})
    assert failed == 500
    assert b"KeyError" not in answer
    assert "KeyError: 'n'" in log


def test_function_target_chooses_among_several(zygote: ZygoteProcess, tmp_path: Path) -> None:
    code = _main(
        tmp_path,
        "@functions_framework.http\n"
        "def one(request): return 'one'\n"
        "@functions_framework.http\n"
        "def two(request): return 'two'\n",
    )
    named = replace(FUNCTION, environment={"FUNCTION_TARGET": "two"})
    with worker(zygote, named, tmp_path / "named", code_dir=code) as running:
        assert running.call("/")[1] == b"two"
    with worker(zygote, FUNCTION, tmp_path / "unnamed", code_dir=code) as running:
        status = running.status()

    assert status.event == "failed"
    assert "found one, two" in str(status.error)
