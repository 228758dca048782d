"""The Open Inference Protocol on the wire; the real client is in tests/e2e/test_oip.py."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from aiohttp import web as server

from harness import web
from harness.gateway import Bench
from harness.stack import wait_until
from stoker.placement.errors import CrashLoop, FunctionError, NoCapacity
from stoker.placement.records import (
    FailureRecord,
    FunctionRecord,
    PlaceAnswer,
    PlaceRequest,
    encode,
)

TEXTS = {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["one", "two"]}
VECTORS = [(0.5, -1.0, 2.0), (4.0, 0.25, 8.0)]


def call(bench: Bench, method: str, path: str, body: Any = None, **headers: str) -> web.Answer:
    return bench.call(method, f"/v2{path}", body, web.bearer(bench.password) | headers)


async def embeddings(request: server.Request) -> server.Response:
    sent = await request.json()
    assert (request.path, sent["encoding_format"]) == ("/v1/embeddings", "base64")
    rows = [base64.b64encode(struct.pack("<3f", *row)).decode() for row in VECTORS]
    data = [{"index": i, "embedding": row} for i, row in enumerate(rows)]
    return server.json_response({"data": data[: len(sent["input"])]})


def embedder(bench: Bench) -> FunctionRecord:
    function = bench.function(task="embed")
    bench.instance(function, bench.worker(embeddings).address)
    return function


def test_the_server_tells_what_it_is_and_that_it_is_ready(bench: Bench) -> None:
    told = call(bench, "GET", "").json()
    assert told["name"] == "stoker"
    assert told["extensions"] == ["binary_tensor_data", "model_repository"]
    for path in ("/health/live", "/health/ready"):
        answer = call(bench, "GET", path)
        assert (answer.status, answer.json()) == (200, {"live": True, "ready": True})


def test_models_are_listed_and_described_with_their_version(bench: Bench) -> None:
    embed, custom = bench.function(task="embed", generation=3), bench.function(namespace="team")
    chat = bench.function(task="chat")
    models = call(bench, "GET", "/models").json()["models"]
    assert {embed.name, custom.key} <= set(models)
    assert chat.name not in models
    for path in (f"/models/{embed.name}", f"/models/{embed.name}/versions/3"):
        assert call(bench, "GET", path).json() == {
            "name": embed.name,
            "versions": ["3"],
            "platform": "stoker_embed",
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": "embedding", "datatype": "FP32", "shape": [-1, -1]}],
        }
    assert call(bench, "GET", f"/models/{custom.key}").json()["inputs"] == []
    ready = call(bench, "GET", f"/models/{embed.name}/ready")
    assert (ready.status, ready.json()) == (200, {"name": embed.name, "ready": True})


def test_a_function_whose_starts_are_given_up_is_not_ready(bench: Bench) -> None:
    function = bench.function(task="embed")
    error = CrashLoop("Its starts fail.").to_wire()
    failure = FailureRecord(function.key, 1, "i", "node-1", 5, 5, error, 0.0, None)
    bench.store.put(failure.path, encode(failure))

    def status() -> int:
        return call(bench, "GET", f"/models/{function.name}/ready").status

    wait_until(lambda: status() == 503, "the failure is known")
    assert "fail" in call(bench, "GET", f"/models/{function.name}/ready").json()["error"]


def test_texts_go_in_and_vectors_come_out_as_json(bench: Bench) -> None:
    function = embedder(bench)
    sent = {"id": "call-7", "inputs": [TEXTS]}
    answer = call(bench, "POST", f"/models/{function.name}/versions/1/infer", sent)
    assert answer.json() == {
        "model_name": function.name,
        "model_version": "1",
        "id": "call-7",
        "outputs": [
            {
                "name": "embedding",
                "datatype": "FP32",
                "shape": [2, 3],
                "data": [value for row in VECTORS for value in row],
            }
        ],
    }
    unnamed = call(bench, "POST", f"/models/{function.name}/infer", {"inputs": [TEXTS]})
    assert unnamed.json()["id"] == unnamed.headers["x-call-id"]


def test_texts_and_vectors_may_be_binary(bench: Bench) -> None:
    function = embedder(bench)
    raw = b"\3\0\0\0one\3\0\0\0two"
    text = {"name": "t", "datatype": "BYTES", "shape": [2]}
    text["parameters"] = {"binary_data_size": len(raw)}
    asked = {"inputs": [text], "outputs": [{"name": "embedding"}]}
    asked["outputs"][0]["parameters"] = {"binary_data": True}
    head = json.dumps(asked).encode()
    answer = call(
        bench,
        "POST",
        f"/models/{function.name}/infer",
        head + raw,
        **{
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(head)),
        },
    )
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers["inference-header-content-length"])
    (output,) = json.loads(answer.body[:length])["outputs"]
    assert output["parameters"] == {"binary_data_size": 24}
    assert struct.unpack("<6f", answer.body[length:]) == (*VECTORS[0], *VECTORS[1])


def test_a_function_of_code_gets_json_and_its_outputs_may_be_binary(bench: Bench) -> None:
    seen = []

    async def double(request: server.Request) -> server.Response:
        sent = await request.json()
        seen.append((request.path, request.content_type, sent))
        (given,) = sent["inputs"]
        row = {**given, "name": "doubled", "data": [2 * value for value in given["data"]]}
        return server.json_response({"outputs": [row], "parameters": {"said": "so"}})

    function = bench.function()
    bench.instance(function, bench.worker(double).address)
    raw = struct.pack("<3f", 1, 2, 3)
    given = {"name": "x", "datatype": "FP32", "shape": [3]}
    given["parameters"] = {"binary_data_size": len(raw)}
    asked = {"id": "a", "inputs": [given], "parameters": {"binary_data_output": True}}
    head = json.dumps(asked).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    answer = call(bench, "POST", f"/models/{function.name}/infer", head + raw, **length)
    path, kind, sent = seen[0]
    assert (path, kind) == (f"/v2/models/{function.name}/infer", "application/json")
    assert sent["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [3], "data": [1, 2, 3]}]
    length_told = int(answer.headers["inference-header-content-length"])
    told = json.loads(answer.body[:length_told])
    assert (told["id"], told["parameters"]) == ("a", {"said": "so"})
    assert struct.unpack("<3f", answer.body[length_told:]) == (2, 4, 6)


@pytest.mark.parametrize(
    ("returned", "status", "said"),
    [
        (server.json_response({"outputs": []}), 500, "Expected outputs"),
        (server.json_response([1]), 500, "Expected outputs"),
        (server.Response(text="hello"), 500, "Expected JSON"),
        (server.Response(text="no such thing", status=404), 404, "no such thing"),
        (server.json_response({"error": "mine"}, status=422), 422, "mine"),
        (
            server.json_response({"error": FunctionError("It broke.").to_wire()}, status=500),
            500,
            "It broke.",
        ),
    ],
)
def test_what_a_function_gets_wrong_is_an_error_text(
    bench: Bench, returned: server.Response, status: int, said: str
) -> None:
    async def answer(_: server.Request) -> server.Response:
        return server.Response(
            body=returned.body, status=returned.status, content_type=returned.content_type
        )

    function = bench.function()
    bench.instance(function, bench.worker(answer).address)
    got = call(bench, "POST", f"/models/{function.name}/infer", {"inputs": [TEXTS]})
    assert (got.status, got.json().keys()) == (status, {"error"})
    assert said in got.json()["error"]


@pytest.mark.parametrize(
    "inputs",
    [
        [],
        [TEXTS, TEXTS],
        [TEXTS | {"datatype": "FP32", "data": [1, 2]}],
        [TEXTS | {"shape": [3]}],
        [TEXTS | {"shape": [2049], "data": ["x"] * 2049}],
        [TEXTS | {"shape": [0], "data": []}],
    ],
)
def test_what_is_no_list_of_texts_is_refused_and_starts_nothing(
    bench: Bench, inputs: list[Any]
) -> None:
    function = bench.function(task="embed")
    answer = call(bench, "POST", f"/models/{function.name}/infer", {"inputs": inputs})
    assert (answer.status, answer.json().keys()) == (400, {"error"})
    assert bench.place.asked == []


def test_every_error_is_a_text_with_the_status_of_the_protocol(bench: Bench) -> None:
    async def full(_: PlaceRequest) -> server.Response:
        error = NoCapacity("All is full.", retry_after_seconds=3)
        return server.json_response({"error": error.to_wire()}, status=503)

    bench.place.answer = full
    chat, embed = bench.function(task="chat"), bench.function(task="embed")
    asked = {"inputs": [TEXTS]}
    answers = {
        "unknown": call(bench, "GET", "/models/nobody"),
        "unknown ready": call(bench, "GET", "/models/nobody/ready"),
        "unknown infer": call(bench, "POST", "/models/nobody/infer", asked),
        "version": call(bench, "GET", f"/models/{embed.name}/versions/9"),
        "route": call(bench, "GET", "/nothing"),
        "method": call(bench, "GET", f"/models/{embed.name}/infer"),
        "chat": call(bench, "POST", f"/models/{chat.name}/infer", asked),
        "generate": call(bench, "POST", f"/models/{chat.name}/generate", {"text_input": "x"}),
        "full": call(bench, "POST", f"/models/{embed.name}/infer", asked),
        "load": call(bench, "POST", f"/repository/models/{embed.name}/load"),
        "json": call(bench, "POST", f"/models/{embed.name}/infer", b"{"),
    }
    assert {name: answer.status for name, answer in answers.items()} == {
        "unknown": 404,
        "unknown ready": 404,
        "unknown infer": 404,
        "version": 404,
        "route": 404,
        "method": 405,
        "chat": 501,
        "generate": 501,
        "full": 503,
        "load": 503,
        "json": 400,
    }
    for answer in answers.values():
        assert list(answer.json()) == ["error"]
        assert isinstance(answer.json()["error"], str)
    assert answers["full"].headers["retry-after"] == "3"


def test_without_the_password_nothing_is_answered(bench: Bench) -> None:
    for path in ("", "/health/live", "/models", "/models/x", "/models/x/infer"):
        for headers in ({}, web.bearer("wrong")):
            answer = bench.call("GET", f"/v2{path}", None, headers)
            assert (answer.status, list(answer.json())) == (401, ["error"])
    assert bench.call("GET", "/v2", None, web.basic(bench.password)).status == 200


def test_load_asks_for_an_instance_and_unload_lets_all_go(bench: Bench) -> None:
    function = bench.function(task="embed")
    worker = bench.worker(embeddings)

    async def place(_: PlaceRequest) -> PlaceAnswer:
        return PlaceAnswer((bench.assignment(function, worker.address),))

    bench.place.answer = place
    loaded = call(bench, "POST", f"/repository/models/{function.name}/load", {})
    assert (loaded.status, loaded.json()) == (200, {"name": function.name, "load": True})
    assert [asked.function for asked in bench.place.asked] == [function.key]
    assert worker.requests == []
    unloaded = call(bench, "POST", f"/repository/models/{function.name}/unload", {})
    assert (unloaded.status, unloaded.json()) == (200, {"name": function.name, "unload": True})
    entry = bench.store.get(function.path)
    assert entry is not None
    assert json.loads(entry.value)["replicas_requested"] == 0


def test_a_token_reaches_its_own_functions_and_may_scale_them_only_if_it_manages(
    bench: Bench,
) -> None:
    ours, theirs = bench.function(task="embed", namespace="team"), embedder(bench)
    for permission, loading in (("invoke", 403), ("manage", 200)):
        scope = {"scope": "namespace", "namespace": "team", "permission": permission}
        token = bench.system("POST", "/system/tokens", scope).json()["token"]
        headers = web.bearer(token)
        listed = bench.call("GET", "/v2/models", None, headers).json()["models"]
        assert ours.key in listed
        assert theirs.name not in listed
        for method, path in (("GET", ""), ("GET", "/ready"), ("POST", "/infer")):
            url = f"/v2/models/{theirs.name}{path}"
            assert bench.call(method, url, {"inputs": [TEXTS]}, headers).status == 403
        url = f"/v2/repository/models/{ours.key}/unload"
        assert bench.call("POST", url, {}, headers).status == loading
