from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from stoker.placement.errors import FunctionError, StartFailed
from stoker.runtime.handlers.http import Request
from stoker.runtime.handlers.openfaas import Context, FunctionHandler, load_handle

CONTEXT = Context("i-1", "shout", "ns", {})


def _call(
    code: str, folder: Path, request: Request | None = None
) -> tuple[int, dict[str, str], bytes]:
    (folder / "handler.py").write_text(code)
    handler = FunctionHandler(load_handle(folder), CONTEXT, 4)
    request = request or Request(
        "PUT", "/a/b", "x=1&x=2&empty=", (("x-thing", "v"), ("x-stoker-token", "secret")), b"body"
    )

    async def scenario() -> tuple[int, dict[str, str], bytes]:
        response = await handler(request)
        body = response.body
        if not isinstance(body, bytes):
            body = b"".join([piece async for piece in body])
        return response.status, dict(response.headers), body

    return asyncio.run(scenario())


def _handle(body: str, *, define: str = "def") -> str:
    return f"{define} handle(event, context):\n    {body}\n"


@pytest.mark.parametrize(
    ("code", "status", "content_type", "body"),
    [
        ("return 'text'", 200, "text/plain; charset=utf-8", b"text"),
        ("return b'\\x00\\x01'", 200, "application/octet-stream", b"\x00\x01"),
        ("return None", 200, "text/plain; charset=utf-8", b""),
        ("return [1, 'a']", 200, "application/json", b'[1,"a"]'),
        ("return {'a': 1}", 200, "application/json", b'{"a":1}'),
        ("return {'statusCode': 201, 'body': 'made'}", 201, "text/plain; charset=utf-8", b"made"),
        ("return {'body': {'a': 1}}", 200, "application/json", b'{"a":1}'),
        ("return {'statusCode': 204}", 204, "application/octet-stream", b""),
        ("return 'x', 418", 418, "text/plain; charset=utf-8", b"x"),
        ("return 'x', 202, {'Content-Type': 'a/b'}", 202, "a/b", b"x"),
        ("return 'x', {'content-type': 'a/b'}", 200, "a/b", b"x"),
        (
            "return {'body': '<p>', 'headers': {'Content-Type': 'text/html'}}",
            200,
            "text/html",
            b"<p>",
        ),
    ],
)
def test_every_kind_of_result_becomes_a_response(
    tmp_path: Path, code: str, status: int, content_type: str, body: bytes
) -> None:
    found, headers, payload = _call(_handle(code), tmp_path)

    assert (found, payload) == (status, body)
    assert {name.lower(): value for name, value in headers.items()}["content-type"] == content_type


def test_the_event_and_context_are_those_of_the_python_template(tmp_path: Path) -> None:
    code = _handle(
        "return [event.body.decode(), event.method, event.path, event.query,"
        " event.headers['X-Thing'], event.headers.get('X-Stoker-Token'),"
        " context.hostname, context.function]"
    )

    _, _, payload = _call(code, tmp_path)

    assert payload == b'["body","PUT","/a/b",{"x":"1","empty":""},"v",null,"i-1","shout"]'


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def handle(req): return req + ' again'", b"gr\xc3\xbc\xc3\x9fe again"),
        ("def handle(req): return None", b""),
        ("def handle(req): return {'body': req}", '{"body":"grüße"}'.encode()),
        ("async def handle(req): return req", "grüße".encode()),
        ("def handle(req, context=None): return context.function", b"shout"),
        ("def handle(req):\n    yield req", "grüße".encode()),
    ],
)
def test_a_handle_with_one_parameter_gets_the_body_as_text(
    tmp_path: Path, code: str, expected: bytes
) -> None:
    request = Request("POST", "/", "", (), "grüße".encode())

    assert _call(code, tmp_path, request)[2] == expected


def test_coroutines_and_generators_of_both_kinds_work(tmp_path: Path) -> None:
    generator = _handle("yield 'a'\n    yield b'b'\n    yield {'c': 1}")

    assert _call(_handle("return 'x'", define="async def"), tmp_path)[2] == b"x"
    assert _call(generator, tmp_path)[2] == b'ab{"c":1}'
    assert _call("async " + generator, tmp_path)[2] == b'ab{"c":1}'
    assert _call(_handle("return {'body': iter(['p', 'q'])}"), tmp_path)[2] == b"pq"


@pytest.mark.parametrize(
    "code",
    [
        "raise ValueError('secret detail')",
        "raise SystemExit(3)",
        "raise StopIteration",
        "raise KeyboardInterrupt",
        "import asyncio; raise asyncio.CancelledError",
        "return object()",
        "return {'statusCode': 'many'}",
        "return {'body': '', 'headers': {'a': 'b\\r\\nc: d'}}",
        "yield from ()\n    raise KeyError('secret detail')",
    ],
)
def test_a_failing_handler_is_a_500_whose_traceback_stays_in_the_log(
    tmp_path: Path, code: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FunctionError) as caught:
        _call(_handle(code), tmp_path)

    assert "secret detail" not in str(caught.value)
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "handler.py"),
        ({"main.py": "x = 1"}, "found main.py"),
        ({"handler.py": "def handler(event, context): pass"}, "found functions: handler"),
        ({"handler.py": "def handle(): pass"}, r"found handle\(\)"),
        ({"handler.py": "def handle(a, b, c): pass"}, r"found handle\(a, b, c\)"),
        ({"handler.py": "import not_there_at_all"}, "ModuleNotFoundError"),
        ({"handler.py": "def handle(:"}, "SyntaxError"),
        ({"handler.py": "raise SystemExit"}, "SystemExit"),
    ],
)
def test_code_that_cannot_be_called_fails_the_start_and_says_what_was_found(
    tmp_path: Path, files: dict[str, str], expected: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    with pytest.raises(StartFailed, match=expected):
        load_handle(tmp_path)


def test_the_last_step_of_a_generator_waits_for_the_one_that_runs(tmp_path: Path) -> None:
    """A client that leaves while the generator works still has it closed, once it pauses."""
    (tmp_path / "handler.py").write_text(
        "import threading, time\n"
        "begun, closed = threading.Event(), threading.Event()\n"
        "def handle(event, context):\n"
        "    try:\n"
        "        begun.set()\n"
        "        time.sleep(0.2)\n"
        "        yield 'late'\n"
        "    finally:\n"
        "        closed.set()\n"
    )
    handle: Any = load_handle(tmp_path)
    handler = FunctionHandler(handle, CONTEXT, 1)

    async def scenario() -> None:
        body: Any = (await handler(Request("GET", "/", "", (), b""))).body
        first = asyncio.ensure_future(anext(body))
        await asyncio.to_thread(handle.__globals__["begun"].wait, 5)
        first.cancel()
        await asyncio.wait({first})

    asyncio.run(scenario())
    assert handle.__globals__["closed"].is_set()


def test_a_handler_imports_its_neighbours_from_the_function_folder(tmp_path: Path) -> None:
    folder = tmp_path / "function"
    folder.mkdir()
    (folder / "neighbour_of_handler.py").write_text("VALUE = 'next door'")
    (folder / "handler.py").write_text(
        "from neighbour_of_handler import VALUE\n" + _handle("return VALUE")
    )

    handle: Any = load_handle(tmp_path)

    assert handle(None, None) == "next door"
