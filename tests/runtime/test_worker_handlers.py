"""Functions of the other kinds in a real worker: their own packages, real HTTP."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from harness.functions import (
    EVENT_HEADERS,
    EXAMPLES,
    FUNC_PYTHON,
    FUNCTION,
    STRUCTURED,
    write_files,
)
from harness.workers import WorkerProcess, ZygoteProcess, worker


def test_a_knative_example_starts_counts_is_probed_and_stops(
    zygote: ZygoteProcess, tmp_path: Path
) -> None:
    code = EXAMPLES / "knative" / "project"
    running = WorkerProcess(zygote, FUNCTION, tmp_path / "work", code_dir=code)
    answers = [running.call("/x/y", b"", method=method)[1] for method in ("GET", "POST")]
    probes = [running.call(f"/health/{kind}")[:2] for kind in ("liveness", "readiness")]
    os.kill(running.pid, 15)
    assert zygote.event().status == 0
    log = running.log()

    assert answers == [b"1 GET /x/y", b"2 POST /x/y"]
    assert probes == [(200, b"alive"), (200, b"ready")]
    assert "tried starts" in log
    assert "stopped after 2 calls" in log


def test_a_knative_function_is_asked_until_it_is_ready_and_may_fail(
    zygote: ZygoteProcess, tmp_path: Path
) -> None:
    code = write_files(
        tmp_path / "code",
        {
            "function/__init__.py": "",
            "function/func.py": "import asyncio, os, time\n"
            "class Function:\n"
            "    def start(self, cfg): self.at = time.monotonic() + 0.3; self.cfg = cfg\n"
            "    def ready(self): return time.monotonic() > self.at\n"
            "    def alive(self): return False, 'tired'\n"
            "    async def handle(self, scope, receive, send):\n"
            "        body = (await receive())['body']\n"
            "        if body == b'exit': raise SystemExit\n"
            "        if body == b'silent': return\n"
            "        await send({'type': 'http.response.start', 'status': 201})\n"
            "        for piece in (b'a', self.cfg['K_REVISION'].encode()):\n"
            "            await send({'type': 'http.response.body', 'body': piece,\n"
            "                'more_body': True})\n"
            "        if body == b'break': raise ValueError('private')\n"
            "        await send({'type': 'http.response.body'})\n"
            "        await asyncio.sleep(0.1)\n"
            "        os.write(2, b'afterwards')\n"
            "def new(): return Function()\n",
        },
    )
    began = time.monotonic()
    with worker(zygote, FUNCTION, tmp_path / "work", code_dir=code) as running:
        assert running.status().event == "serving"
        seconds = time.monotonic() - began
        answers = [running.call("/", body) for body in (b"exit", b"silent", b"go")]
        with running.open("/", b"break") as response, pytest.raises(Exception, match="Incomplete"):
            response.read()
        alive = running.call("/health/liveness", method="GET")
        time.sleep(0.2)
        log = running.log()

    assert seconds >= 0.3
    assert [answer[:2] for answer in answers][2] == (201, b"atried-00003")
    assert [status for status, _, _ in answers] == [500, 500, 201]
    assert alive[:2] == (500, b"tired")
    assert "afterwards" in log
    assert "ValueError: private" in log


def test_a_knative_event_function_gets_events_of_both_modes_and_answers_with_one(
    zygote: ZygoteProcess, tmp_path: Path
) -> None:
    code = write_files(
        tmp_path / "code",
        {
            "func.yaml": "name: tried\ninvoke: cloudevent\n",
            "function/__init__.py": "from .func import handle\n",
            "function/func.py": "from cloudevents.core.v1.event import CloudEvent\n"
            "async def handle(scope, receive, send):\n"
            "    event = scope['event']\n"
            "    if event.get_data() == {'n': 0}: raise ValueError('private')\n"
            "    reply = CloudEvent({'type': 'reply', 'source': '/tried',\n"
            "        'id': event.get_id()}, event.get_data())\n"
            "    await send.binary(reply)\n",
        },
    )
    # Its packages lie in its folder, as a function may bring them.
    for package in FUNC_PYTHON.iterdir():
        (code / package.name).symlink_to(package)
    with worker(zygote, FUNCTION, tmp_path / "work", code_dir=code) as running:
        binary = running.call("/", b'{"n": 1}', headers=EVENT_HEADERS)
        structured = running.call(
            "/",
            json.dumps(STRUCTURED).encode(),
            headers={"Content-Type": "application/cloudevents+json"},
        )
        failed = running.call("/", b'{"n": 0}', headers=EVENT_HEADERS)
        refused = running.call("/", b"{}", headers={"Content-Type": "application/json"})
        log = running.log()

    for status, body, headers in (binary, structured):
        assert (status, json.loads(body)) == (200, {"n": 1})
        assert (headers["ce-type"], headers["ce-id"]) == ("reply", "7")
    assert (failed[0], refused[0]) == (500, 400)
    assert b"private" not in failed[1]
    assert "ValueError: private" in log


def test_a_classic_example_runs_once_per_request(zygote: ZygoteProcess, tmp_path: Path) -> None:
    code = EXAMPLES / "classic" / "handler"
    function = replace(FUNCTION, env_process="./respond.sh")
    with worker(zygote, function, tmp_path / "work", code_dir=code) as running:
        answers = [running.call("/a", text)[:2] for text in (b"one", b"two")]
        log = running.log()

    assert answers == [(200, b"ONE"), (200, b"TWO")]
    assert log.count("Forking fprocess.\nanswering POST /a\nWrote 3 Bytes - Duration: ") == 2


@pytest.mark.parametrize(
    ("annotation", "env_process", "expected"),
    [
        ({}, "cat", b"in Python"),
        ({"stoker/handler": "process"}, "cat", b"sent"),
        ({"stoker/handler": "openfaas"}, "", b"in Python"),
        ({"stoker/handler": "functions-framework"}, "", b"main.py"),
        ({"stoker/handler": "knative"}, "", b"func.py"),
    ],
)
def test_the_files_decide_unless_the_annotation_does(
    zygote: ZygoteProcess,
    tmp_path: Path,
    annotation: dict[str, str],
    env_process: str,
    expected: bytes,
) -> None:
    code = write_files(tmp_path / "code", {"handler.py": "def handle(req): return 'in Python'\n"})
    function = replace(FUNCTION, annotations=annotation, env_process=env_process)
    with worker(zygote, function, tmp_path / "work", code_dir=code) as running:
        _, body, _ = running.call("/", b"sent")

    assert expected in body


def test_a_handle_with_one_parameter_runs_as_in_the_flask_template(
    zygote: ZygoteProcess, tmp_path: Path
) -> None:
    code = write_files(
        tmp_path / "code",
        {
            "handler.py": "from flask import jsonify, request\n"
            "def handle(req):\n"
            "    if req == 'dict': return {'body': request.path}\n"
            "    if isinstance(req, bytes): return 'raw ' + req.decode()\n"
            "    return jsonify(echo=req, way=request.method), 202, {'X-Own': '1'}\n"
        },
    )
    with worker(zygote, FUNCTION, tmp_path / "work", code_dir=code) as running:
        status, body, headers = running.call("/a/b", "grüße".encode(), method="PATCH")
        plain = running.call("/a/b", b"dict")
    raw = replace(FUNCTION, environment={"RAW_BODY": "true"})
    with worker(zygote, raw, tmp_path / "raw", code_dir=code) as running:
        as_bytes = running.call("/", b"body")

    assert (status, json.loads(body)) == (202, {"echo": "grüße", "way": "PATCH"})
    assert (headers["content-type"], headers["x-own"]) == ("application/json", "1")
    assert (plain[0], json.loads(plain[1])) == (200, {"body": "/a/b"})
    assert as_bytes[:2] == (200, b"raw body")


def test_a_blocked_handler_holds_up_nobody_else(zygote: ZygoteProcess, tmp_path: Path) -> None:
    code = write_files(
        tmp_path / "code",
        {
            "handler.py": "import time\n"
            "def handle(event, context):\n"
            "    time.sleep(1.0 if event.path == '/slow' else 0.0)\n"
            "    return 'done'\n"
        },
    )
    with worker(zygote, FUNCTION, tmp_path / "work", code_dir=code) as running:
        running.status()
        slow = threading.Thread(target=running.call, args=("/slow",))
        slow.start()
        time.sleep(0.1)
        began = time.monotonic()
        statuses = [running.call("/quick")[0] for _ in range(3)]
        seconds = time.monotonic() - began
        slow.join()

    assert statuses == [200] * 3
    assert seconds < 0.6


def test_an_exit_in_a_task_of_the_functions_own_is_its_500_and_not_the_workers_end(
    zygote: ZygoteProcess, tmp_path: Path
) -> None:
    code = write_files(
        tmp_path / "code",
        {
            "handler.py": "import asyncio, sys\n"
            "async def leave(): sys.exit(4)\n"
            "async def handle(event, context):\n"
            "    if event.path == '/leave': await asyncio.gather(leave())\n"
            "    return 'here'\n"
        },
    )
    with worker(zygote, FUNCTION, tmp_path / "work", code_dir=code) as running:
        statuses = [running.call(path)[0] for path in ("/leave", "/stay")]
        log = running.log()

    assert statuses == [500, 200]
    assert "SystemExit: 4" in log


def test_the_environment_names_function_revision_and_port(
    zygote: ZygoteProcess, tmp_path: Path
) -> None:
    code = write_files(
        tmp_path / "code",
        {
            "handler.py": "import os, sys\n"
            "def handle(event, context): return {**os.environ, 'stdin': sys.stdin.read()}\n"
        },
    )
    with worker(zygote, FUNCTION, tmp_path / "work", code_dir=code) as running:
        found = json.loads(running.call("/")[1])
        port = running.port

    assert (found["PORT"], found["LISTEN_ADDRESS"]) == (str(port), f"127.0.0.1:{port}")
    assert (found["K_SERVICE"], found["K_CONFIGURATION"]) == ("tried", "tried")
    assert found["K_REVISION"] == "tried-00003"
    assert found["stdin"] == ""
    assert (found["OPENFAAS_NAME"], found["OPENFAAS_NAMESPACE"]) == ("tried", "ns")


def test_openfaas_and_classic_functions_get_events_in_every_mode(
    zygote: ZygoteProcess, tmp_path: Path
) -> None:
    code = write_files(
        tmp_path / "code",
        {
            "handler.py": "def handle(event, context):\n"
            "    got = event.cloud_event\n"
            "    if got is None: return 'no event'\n"
            "    headers = {'ce-id': '1', 'ce-source': '/me', 'ce-type': 'done',\n"
            "        'ce-specversion': '1.0', 'Content-Type': 'text/plain'}\n"
            "    text = f\"{got.type} {got.attributes['subject']} {event.body}\"\n"
            "    text += ' ' + event.headers['Ce-Subject']\n"
            "    return {'headers': headers, 'body': text}\n"
        },
    )
    subject = {"subject": "a b"}
    structured = json.dumps(STRUCTURED | subject).encode()
    kind, batch = "application/cloudevents+json", "application/cloudevents-batch+json"
    with worker(zygote, FUNCTION, tmp_path / "work", code_dir=code) as running:
        binary = running.call("/", b'{"n":1}', headers=EVENT_HEADERS | {"ce-subject": "a%20b"})
        one = running.call("/", structured, headers={"Content-Type": kind})
        two = running.call("/", b"[" + structured + b"]", headers={"Content-Type": batch})
        plain = running.call("/", b"x")
        refused = running.call("/", b"x", headers=EVENT_HEADERS | {"ce-subject": "%FF"})
    classic = replace(FUNCTION, env_process="env")
    empty = write_files(tmp_path / "classic", {"README": ""})
    with worker(zygote, classic, tmp_path / "env", code_dir=empty) as running:
        environment = running.call("/", structured, headers={"Content-Type": kind})[1].decode()

    text = "order.made a b b'{\"n\":1}' a%20b"
    assert [answer[1].decode() for answer in (binary, one)] == [text, text]
    assert (binary[2]["ce-type"], two[0]) == ("done", 200)
    assert [reply["data"] for reply in json.loads(two[1])] == [text]
    assert (plain[1], refused[0]) == (b"no event", 400)
    assert {"Http_Ce_Type=order.made", "Http_Ce_Subject=a%20b"} <= set(environment.splitlines())
