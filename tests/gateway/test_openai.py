"""The OpenAI routes, by the real client where it matters."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from aiohttp import web as server

from harness import web
from harness.gateway import Bench, reset, stream
from stoker.placement.errors import ContextOverflow, CrashLoop, NoCapacity, QueueFull
from stoker.placement.records import CheckpointRef, FunctionRecord, PlaceRequest

MESSAGES = [{"role": "user", "content": "Hi"}]


def chunk(text: str, finish: str | None = None) -> bytes:
    value = {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}],
    }
    return b"data: " + json.dumps(value).encode() + b"\n\n"


async def tokens() -> AsyncIterator[bytes]:
    yield chunk("Hel")
    await asyncio.sleep(0.01)
    yield chunk("lo", "stop")
    yield b"data: [DONE]\n\n"


def client_of(bench: Bench) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{bench.url}/v1", api_key=bench.password, max_retries=0)


def chat_function(bench: Bench, address: str, task: str = "chat") -> FunctionRecord:
    function = bench.function(task=task)
    bench.instance(function, address)
    return function


def test_the_client_reads_a_stream_and_the_body_reaches_the_instance_unchanged(
    bench: Bench,
) -> None:
    worker = bench.worker(lambda request: stream(request, tokens(), "text/event-stream"))
    function = chat_function(bench, worker.address)
    with client_of(bench) as client:
        got = client.chat.completions.create(model=function.name, messages=MESSAGES, stream=True)
        assert "".join(c.choices[0].delta.content or "" for c in got) == "Hello"
    request = worker.requests[0]
    assert request.path == "/v1/chat/completions"
    assert "Authorization" not in request.headers
    assert json.loads(worker.bodies[0])["model"] == function.name


def test_an_instance_that_is_full_is_an_error_object_with_its_own_time_to_come_back(
    bench: Bench,
) -> None:
    full = QueueFull("Expected at most 6 requests, found one more.", retry_after_seconds=6.2)

    async def refuse(request: server.Request) -> server.Response:
        body = {"error": full.to_wire()}
        return server.json_response(body, status=429, headers={"Retry-After": "7"})

    function = chat_function(bench, bench.worker(refuse).address)
    with client_of(bench) as client, pytest.raises(openai.RateLimitError) as raised:
        client.chat.completions.create(model=function.name, messages=MESSAGES)
    assert raised.value.response.headers["retry-after"] == "7"
    error = raised.value.response.json()["error"]
    assert error["message"].startswith(full.cause)
    assert (error["type"], error["param"]) == ("rate_limit_error", None)
    assert error["code"] == "queue_full"
    plain = bench.call("POST", f"/function/{function.name}", b"x")
    assert (plain.status, plain.headers["retry-after"]) == (429, "7")
    assert plain.json()["error"]["code"] == "queue_full"


def test_a_lost_stream_raises_in_the_client_instead_of_ending_well(bench: Bench) -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        part = chunk("Hel")
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(part), part)
        )
        await writer.drain()
        await asyncio.sleep(0.1)
        reset(writer)

    function = chat_function(bench, bench.raw_worker(cut))
    with client_of(bench) as client:
        got = client.chat.completions.create(model=function.name, messages=MESSAGES, stream=True)
        assert next(got).choices[0].delta.content == "Hel"
        with pytest.raises(openai.APIError) as raised:
            next(got)
    assert raised.value.code == "instance_lost"


def test_an_error_of_the_instance_becomes_an_openai_error(bench: Bench) -> None:
    async def overflow(request: server.Request) -> server.Response:
        error = ContextOverflow("Expected 10 tokens, found 11.", "Send less.")
        timing = {"Server-Timing": "fetch;dur=1.5, load;dur=2, init;dur=3, prefill;dur=0"}
        return server.json_response({"error": error.to_wire()}, status=400, headers=timing)

    function = chat_function(bench, bench.worker(overflow).address)
    with client_of(bench) as client, pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model=function.name, messages=MESSAGES)
    assert raised.value.code == "context_length_exceeded"
    assert raised.value.body == {
        "message": "Expected 10 tokens, found 11. Send less.",
        "type": "invalid_request_error",
        "param": None,
        "code": "context_length_exceeded",
    }
    response = raised.value.response
    assert response.headers["x-request-id"] == response.headers["x-call-id"]
    assert response.headers["server-timing"].endswith(
        "fetch;dur=1.5, load;dur=2, init;dur=3, prefill;dur=0"
    )


def test_an_unknown_model_is_404_for_the_client(bench: Bench) -> None:
    with client_of(bench) as client, pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="nobody", messages=MESSAGES)
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
    assert raised.value.response.headers["x-openfaas-internal"] == "gateway"
    assert raised.value.response.headers["server-timing"].startswith("queue;dur=0.000, place")


def test_without_the_password_nothing_is_answered(bench: Bench) -> None:
    for headers in ({}, web.bearer("wrong"), {"Authorization": "Bearer "}):
        answer = bench.call("GET", "/v1/models", None, headers)
        assert answer.status == 401
        assert answer.json()["error"]["code"] == "unauthorized"
    assert bench.call("POST", "/v1/chat/completions", b"{}").status == 401
    assert bench.call("GET", "/v1/models", None, web.basic(bench.password)).status == 200


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"model": "x",\n "messages": [}', "line 2 column 15 (byte 29 of 30)"),
        ('{"é": }'.encode(), "line 1 column 7 (byte 7 of 8)"),
        (b"[1]", "found list"),
        (b'{"model": 7}', "found 7"),
        (b"", "line 1 column 1"),
    ],
)
def test_a_bad_body_is_400_with_the_position(bench: Bench, body: bytes, said: str) -> None:
    answer = bench.call("POST", "/v1/chat/completions", body, web.bearer(bench.password))
    assert (answer.status, said in answer.json()["error"]["message"]) == (400, True), answer.body


def test_a_function_of_another_task_is_400(bench: Bench) -> None:
    function = bench.function(task="embed")
    body = {"model": function.name, "messages": MESSAGES}
    answer = bench.call("POST", "/v1/chat/completions", body, web.bearer(bench.password))
    assert answer.status == 400
    assert f"found {function.name} with the task embed" in answer.json()["error"]["message"]


def test_a_large_body_is_read_and_one_over_the_limit_is_413(bench: Bench) -> None:
    async def answer(request: server.Request) -> server.Response:
        return server.json_response({"data": []})

    function = chat_function(bench, bench.worker(answer).address, "embed")
    path, headers = "/openai/v1/embeddings", web.bearer(bench.password)
    large = {"model": function.key, "input": "x" * 600_000}
    assert bench.call("POST", path, large, headers).status == 200
    too_large = bench.call("POST", path, large | {"input": "x" * 1_000_000}, headers)
    assert (too_large.status, too_large.json()["error"]["code"]) == (413, "payload_too_large")


def test_models_are_the_functions_with_a_model(bench: Bench) -> None:
    chat, custom = bench.function(task="chat"), bench.function()
    other = bench.function(task="embed", namespace="team")
    with client_of(bench) as client:
        listed = {model.id for model in client.models.list()}
        assert client.models.retrieve(chat.name).owned_by == "stoker"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("nobody")
    assert {chat.name, other.key} <= listed
    assert custom.name not in listed


def test_unknown_routes_and_methods_are_openai_errors(bench: Bench) -> None:
    headers = web.bearer(bench.password)
    assert bench.call("GET", "/v1/nothing", None, headers).json()["error"]["code"] == "not_found"
    answer = bench.call("GET", "/v1/chat/completions", None, headers)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("path", "task", "param", "fields"),
    [
        ("/v1/chat/completions", "chat", "n", {"n": 10**9}),
        ("/v1/chat/completions", "chat", "top_logprobs", {"logprobs": True, "top_logprobs": 10**9}),
        ("/v1/chat/completions", "chat", "stop", {"stop": ["x"] * 10_000}),
        ("/v1/chat/completions", "chat", "tools", {"tools": [{"type": "function"}]}),
        ("/v1/chat/completions", "chat", "tool_choice", {"tool_choice": "required"}),
        ("/v1/chat/completions", "chat", "response_format", {"response_format": {"type": "x"}}),
        ("/v1/completions", "completion", "suffix", {"prompt": "x", "suffix": "y"}),
        ("/v1/embeddings", "embed", "input", {"input": []}),
    ],
)
def test_a_wrong_request_is_refused_by_its_parameter_and_starts_nothing(
    bench: Bench, path: str, task: str, param: str, fields: dict[str, object]
) -> None:
    function = bench.function(task=task)
    body = {"model": function.name, "messages": MESSAGES} | fields
    seconds = []
    for _ in range(5):
        began = time.monotonic()
        answer = bench.call("POST", path, body, web.bearer(bench.password))
        seconds.append(time.monotonic() - began)
        error = answer.json()["error"]
        assert (answer.status, error["param"]) == (400, param), answer.body
        assert error["type"] == "invalid_request_error"
    assert bench.place.asked == []
    assert min(seconds) < 0.01


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream", "*/*"])
def test_each_token_leaves_at_once_whatever_the_client_accepts(bench: Bench, accept: str) -> None:
    second = threading.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield chunk("one")
        await asyncio.to_thread(second.wait, 10)
        yield chunk("two", "stop")
        yield b"data: [DONE]\n\n"

    worker = bench.worker(lambda request: stream(request, slowly(), "text/event-stream"))
    function = chat_function(bench, worker.address)
    body = json.dumps({"model": function.name, "messages": MESSAGES, "stream": True})
    connection, path = web.connect(f"{bench.url}/v1/chat/completions")
    headers = web.bearer(bench.password) | {"Accept": accept}
    connection.request("POST", path, body, headers)
    events = web.events(connection.getresponse())
    assert "one" in next(events)
    second.set()
    assert "two" in next(events)
    connection.close()


def test_an_error_that_no_retry_mends_says_so_and_another_says_when(bench: Bench) -> None:
    async def refuse(request: PlaceRequest) -> server.Response:
        error = CrashLoop("Its starts fail.") if request.function == given_up.key else later
        return server.json_response({"error": error.to_wire()}, status=503)

    later = NoCapacity("All is full.", retry_after_seconds=500)
    given_up, full = bench.function(task="chat"), bench.function(task="chat")
    bench.place.answer = refuse
    answers = [
        bench.call(
            "POST",
            "/v1/chat/completions",
            {"model": function.name, "messages": MESSAGES},
            web.bearer(bench.password),
        )
        for function in (given_up, full)
    ]
    assert [answer.status for answer in answers] == [503, 503]
    assert answers[0].headers["x-should-retry"] == "false"
    assert "x-should-retry" not in answers[1].headers
    assert answers[1].headers["retry-after"] == "120"


def lines_of(bench: Bench, function: FunctionRecord) -> tuple[int, list[str]]:
    """The status, and every line that is not empty, of a streamed chat."""
    body = json.dumps({"model": function.name, "messages": MESSAGES, "stream": True})
    connection, path = web.connect(f"{bench.url}/v1/chat/completions")
    connection.request("POST", path, body, web.bearer(bench.password))
    response = connection.getresponse()
    lines = [line.decode().rstrip("\n") for line in response if line != b"\n"]
    connection.close()
    return response.status, lines


def test_who_waits_for_a_start_is_told_how_far_it_is_and_errors_come_in_the_stream(
    bench: Bench,
) -> None:
    async def late(request: server.Request) -> server.StreamResponse:
        await asyncio.sleep(4.6)
        return await stream(request, tokens(), "text/event-stream")

    async def fails(request: server.Request) -> server.Response:
        await asyncio.sleep(3.6)
        return server.json_response({"error": ContextOverflow("Too long.").to_wire()}, status=400)

    async def cannot(_: PlaceRequest) -> server.Response:
        await asyncio.sleep(3.6)
        error = NoCapacity("Nothing is free.", retry_after_seconds=1)
        return server.json_response({"error": error.to_wire()}, status=503)

    bench.place.answer, bench.place.loaded_bytes, bench.place.load_step_bytes = cannot, 0, 100
    checkpoint = CheckpointRef("s3://m/x", "a" * 64, 1000, packed=True)
    loading = bench.function(task="chat", checkpoint=checkpoint)
    bench.instance(loading, bench.worker(late).address, "starting")
    serving = chat_function(bench, bench.worker(fails).address)
    nowhere = bench.function(task="chat")
    with ThreadPoolExecutor(3) as threads:
        told = list(threads.map(lambda f: lines_of(bench, f), (loading, serving, nowhere)))

    assert [status for status, _ in told] == [200, 200, 200]
    comments = [line for line in told[0][1] if line.startswith(":")]
    assert re.fullmatch(r": loading 10 %", comments[0])
    assert re.fullmatch(r": loading 20 % \d+ MB/s", comments[1])
    assert re.match(r": server-timing queue;dur=[\d.]+, place;", comments[-1])
    assert told[0][1][-1] == "data: [DONE]"
    assert told[1][1][0] == ": working 3 s"
    assert told[2][1][0] == ": queued 3 s"
    for lines, code in ((told[1][1], "context_length_exceeded"), (told[2][1], "no_capacity")):
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == code
