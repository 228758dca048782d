"""The control plane, as faas-cli and the stoker command use it."""

from __future__ import annotations

import io
import json
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from aiohttp import web as server

from harness import web
from harness.gateway import Bench
from stoker.gateway.builder import CONFIG_NAME
from stoker.placement.errors import CheckpointMissing, Conflict, NotFound, StartFailed
from stoker.placement.records import (
    CheckpointRef,
    EvictRequest,
    FailureRecord,
    FunctionRecord,
    ImageRecord,
    ResidentRecord,
    decode,
    encode,
)
from stoker.placement.why import WhyAnswer


def image(bench: Bench, name: str) -> str:
    bench.store.put(ImageRecord.path_of(name), encode(ImageRecord(name, "0" * 64)))
    return name


def deployment(name: str, **fields: object) -> dict[str, object]:
    return {"service": name, "image": f"{name}:latest", **fields}


def record(bench: Bench, name: str, namespace: str = "openfaas-fn") -> FunctionRecord:
    entry = bench.store.get(f"/functions/{namespace}/{name}")
    assert entry is not None
    return decode(FunctionRecord, entry.value)


def test_deploy_update_and_remove_with_the_statuses_of_faas_cli(bench: Bench) -> None:
    image(bench, "life:latest")
    body = deployment("life", labels={"a": "b"}, limits={"memory": "1Mi"})
    time.sleep(0.1)
    missing = bench.call("PUT", "/system/functions", body, web.basic(bench.password))
    assert (missing.status, missing.headers["content-type"]) == (404, "text/plain; charset=utf-8")
    assert bench.system("POST", "/system/functions", body).status == 202
    status = bench.system("GET", "/system/function/life").json()
    assert status["labels"] == {"a": "b", "faas_function": "life"}
    assert status["limits"] == {"memory": "1Mi"}
    assert "envVars" not in status
    assert (status["replicas"], status["availableReplicas"]) == (0, 0)
    assert bench.system("PUT", "/system/functions", body).status == 202
    assert record(bench, "life").generation == 2
    assert "life" in [f["name"] for f in bench.system("GET", "/system/functions").json()]
    gone = {"functionName": "life"}
    assert bench.system("DELETE", "/system/functions", gone).status == 202
    assert bench.system("GET", "/system/function/life").status == 404
    assert bench.system("DELETE", "/system/functions", gone).status == 404


def test_a_function_says_which_starts_failed_and_when_the_next_is(bench: Bench) -> None:
    image(bench, "broken:latest")
    time.sleep(0.1)
    assert bench.system("POST", "/system/functions", deployment("broken")).status == 202
    assert "failure" not in bench.system("GET", "/system/function/broken").json()
    wire = StartFailed("It ended with exit code 3.", "Read the log.").to_wire()
    failed = FailureRecord("broken.openfaas-fn", 1, "1-0", "n", 2, 2, wire, 0.0, 86400.0)
    for retry_at, told in ((86400.0, "1970-01-02T00:00:00Z"), (None, None)):
        bench.store.put(failed.path, encode(replace(failed, retry_at=retry_at)))
        time.sleep(0.1)
        status = bench.system("GET", "/system/function/broken").json()
        assert status["failure"] == {"failedStarts": 2, "retryAt": told, **wire}


def test_a_namespace_comes_from_the_body_or_the_query(bench: Bench) -> None:
    image(bench, "spaced:latest")
    time.sleep(0.1)
    for name in ("one", "two"):
        assert bench.system("POST", "/system/namespace/", {"name": name}).status == 201
    body = deployment("spaced")
    assert bench.system("POST", "/system/functions?namespace=one", body).status == 202
    assert bench.system("POST", "/system/functions", body | {"namespace": "two"}).status == 202
    assert bench.system("GET", "/system/functions?namespace=three").json() == []
    assert [f["name"] for f in bench.system("GET", "/system/functions?namespace=two").json()] == [
        "spaced"
    ]
    assert {"one", "two", "openfaas-fn"} <= set(bench.system("GET", "/system/namespaces").json())
    scale = {"serviceName": "spaced", "replicas": 1}
    path = "/system/scale-function/spaced?namespace=one"
    assert bench.system("POST", path, scale).status == 202
    gone = {"functionName": "spaced"}
    assert bench.system("DELETE", "/system/functions?namespace=one", gone).status == 202
    gone["namespace"] = "two"
    assert bench.system("DELETE", "/system/functions", gone).status == 202
    for name in ("one", "two"):
        assert bench.system("DELETE", f"/system/namespace/{name}").status == 202


def test_updates_at_the_same_time_all_count(bench: Bench) -> None:
    image(bench, "race:latest")
    time.sleep(0.1)
    body = deployment("race")
    assert bench.system("POST", "/system/functions", body).status == 202
    with ThreadPoolExecutor(3) as pool:
        answers = pool.map(lambda _: bench.system("PUT", "/system/functions", body), range(3))
        assert [a.status for a in answers] == [202] * 3
    assert record(bench, "race").generation == 4


def test_a_bad_spec_is_400_with_cause_and_remedy(bench: Bench) -> None:
    body = deployment("typo", annotations={"stoker/modle": "s3://b/x"})
    answer = bench.system("POST", "/system/functions", body)
    assert (answer.status, answer.json()["error"]["code"]) == (400, "bad_spec")
    plain = bench.call("POST", "/system/functions", body, web.basic(bench.password))
    assert plain.headers["content-type"] == "text/plain; charset=utf-8"
    assert b"stoker/model" in plain.body
    assert bench.system("POST", "/system/functions", b"{,}").json()["error"]["code"] == "bad_json"
    unbuilt = bench.system("POST", "/system/functions", deployment("unbuilt")).json()["error"]
    assert "was never built here" in unbuilt["cause"]
    assert bench.system("POST", "/system/functions", b"x" * 2_000_000).status == 413


def test_a_model_is_pinned_by_a_node_at_deploy(bench: Bench) -> None:
    pinned = CheckpointRef("s3://b/m", "a" * 64, 100, packed=True)

    def resolve(uri: str) -> server.Response:
        if uri == pinned.uri:
            return server.Response(body=encode(pinned))
        error = CheckpointMissing(f"Expected a checkpoint at {uri}, found none.")
        return server.json_response({"error": error.to_wire()}, status=error.status)

    bench.place.resolve = resolve
    body = deployment("model", annotations={"stoker/model": "s3://b/m"})
    assert bench.system("POST", "/system/functions", body).status == 202
    assert record(bench, "model").checkpoint == pinned
    body = deployment("model2", annotations={"stoker/model": "s3://b/absent"})
    answer = bench.system("POST", "/system/functions", body)
    assert (answer.status, answer.json()["error"]["code"]) == (400, "checkpoint_missing")
    assert bench.system("GET", "/system/function/model2").status == 404


def test_an_adapter_is_pinned_beside_its_model(bench: Bench) -> None:
    def resolve(uri: str) -> server.Response:
        return server.Response(body=encode(CheckpointRef(uri, uri[-1] * 64, 100, packed=True)))

    bench.place.resolve = resolve
    annotations = {"stoker/model": "s3://b/a", "stoker/adapter": "s3://b/b"}
    body = deployment("adapted", annotations=annotations)
    assert bench.system("POST", "/system/functions", body).status == 202
    found = record(bench, "adapted")
    assert found.checkpoint == CheckpointRef("s3://b/a", "a" * 64, 100, packed=True)
    assert found.adapter == CheckpointRef("s3://b/b", "b" * 64, 100, packed=True)


def test_scaling_is_asked_once_and_reads_back_at_once(bench: Bench) -> None:
    function = bench.function()
    path = f"/system/scale-function/{function.name}"
    for asked, told in ((1, 1), (9, 1), (0, 0)):
        body = {"serviceName": function.name, "replicas": asked}
        assert bench.system("POST", path, body).status == 202
        status = bench.system("GET", f"/system/function/{function.name}").json()
        assert status["replicas"] == told
    assert record(bench, function.name).generation == function.generation
    for bad in (-1, "2", 1.5, True, None):
        body = {"serviceName": function.name, "replicas": bad}
        assert bench.system("POST", path, body).status == 400
    body = {"serviceName": "nobody", "replicas": 1}
    assert bench.system("POST", "/system/scale-function/nobody", body).status == 404


def test_evicting_a_function_asks_the_nodes_for_its_checkpoint(bench: Bench) -> None:
    function = bench.function(checkpoint=CheckpointRef("s3://b/m", "a" * 64, 100, packed=True))
    asked: list[EvictRequest] = []

    def evict(request: EvictRequest) -> server.Response:
        asked.append(request)
        if len(asked) == 1:
            return server.Response(status=204)
        error = Conflict("Expected it to be idle, found it in use.")
        return server.json_response({"error": error.to_wire()}, status=error.status)

    bench.place.evict = evict
    path = f"/system/evict-function/{function.name}"
    assert bench.system("POST", path, {"serviceName": function.name}).status == 204
    answer = bench.system("POST", path, {"serviceName": function.name, "disk": True})
    assert (answer.status, answer.json()["error"]["code"]) == (409, "conflict")
    assert asked == [EvictRequest("a" * 64), EvictRequest("a" * 64, True)]
    assert bench.system("POST", path, {"disk": "yes"}).status == 400
    assert bench.system("POST", "/system/evict-function/nobody", {}).status == 404
    without = f"/system/evict-function/{bench.function().name}"
    assert bench.system("POST", without, {}).status == 400


def test_why_is_what_the_leader_says_of_the_call(bench: Bench) -> None:
    told = WhyAnswer(1.0, "f.ns", "stoker", "ssd", "n", "1-0", 1.0, None, (), (), "", (), 0)

    def why(name: str) -> server.Response:
        if name == "a call/1":
            return server.Response(body=encode(told))
        error = NotFound("Expected a call or an instance, found none.")
        return server.json_response({"error": error.to_wire()}, status=error.status)

    bench.place.why = why
    answer = bench.system("GET", "/system/why/a%20call%2F1")
    assert (answer.status, decode(WhyAnswer, answer.body)) == (200, told)
    answer = bench.system("GET", "/system/why/another")
    assert (answer.status, answer.json()["error"]["code"]) == (404, "not_found")


def test_instances_and_nodes_are_told_in_full(bench: Bench) -> None:
    function = bench.function()
    assigned = bench.instance(function, "127.0.0.1:9")
    (row,) = [
        r
        for r in bench.system("GET", "/system/instances").json()
        if r["instance_id"] == assigned.instance_id
    ]
    assert (row["function"], row["state"], row["in_flight"]) == (function.key, "serving", 0)
    assert 0 <= row["age_seconds"] < 60
    status = bench.system("GET", f"/system/function/{function.name}").json()
    assert (status["replicas"], status["availableReplicas"]) == (1, 1)
    resident = ResidentRecord("node-1", "b" * 64, 5, 7)
    bench.store.put(resident.path, encode(resident))
    time.sleep(0.2)
    (node,) = bench.system("GET", "/system/nodes").json()
    assert (node["node_id"], node["zygote_ready"]) == ("node-1", True)
    assert (node["dram_resident_bytes"], node["ssd_resident_bytes"]) == (5, 7)


def test_info_has_every_field_a_provider_must_have(bench: Bench) -> None:
    info = bench.system("GET", "/system/info").json()
    assert info["provider"]["provider"] == "stoker"
    assert all(info["version"].values())
    assert info["arch"]


def test_telemetry_counts_and_names_nothing(bench: Bench) -> None:
    function = bench.function()
    told = bench.system("GET", "/system/telemetry")
    assert told.json()["functions"] >= 1
    assert told.json()["nodes"] == 1
    assert function.name.encode() not in told.body


def test_metrics_name_deployed_functions_only(bench: Bench) -> None:
    async def ok(request: server.Request) -> server.Response:
        return server.Response()

    function = bench.function()
    bench.instance(function, bench.worker(ok).address)
    bench.call("GET", f"/function/{function.name}")
    bench.call("GET", "/function/unheard-of")
    text = bench.system("GET", "/metrics").body.decode()
    label = f'function_name="{function.key}"'
    assert f'gateway_function_invocation_total{{code="200",{label}}} 1.0' in text
    assert f"gateway_function_invocation_started{{{label}}} 1.0" in text
    assert f"gateway_service_count{{{label}}} 1.0" in text
    assert f"gateway_service_ready_count{{{label}}} 1.0" in text
    assert f"gateway_function_invocation_inflight{{{label}}} 0.0" in text
    assert f'gateway_functions_seconds_count{{code="200",{label}}} 1.0' in text
    assert "unheard-of" not in text
    status = bench.system("GET", f"/system/function/{function.name}").json()
    assert status["invocationCount"] == 1
    bench.store.delete(function.path)
    time.sleep(0.2)
    assert function.key not in bench.system("GET", "/metrics").body.decode()


def test_logs_of_all_nodes_come_in_order_of_time(bench: Bench) -> None:
    function = bench.function()

    def line(second: int) -> bytes:
        stamp = f"2026-01-01T00:00:{second:02}Z"
        return json.dumps({"name": function.name, "timestamp": stamp}).encode() + b"\n"

    bench.place.log_lines = [line(3), line(1), line(2)]
    path = f"/system/logs?name={function.name}"
    answer = bench.system("GET", f"{path}&tail=2&since=2026-01-01T00:00:00Z")
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.body == line(2) + line(3)
    assert bench.place.log_queries[-1] == {
        "function": function.key,
        "tail": "2",
        "follow": "0",
        "since": "2026-01-01T00:00:00Z",
    }
    followed = bench.system("GET", f"{path}&follow=true")
    assert sorted(followed.body.splitlines()) == sorted(b"".join(map(line, (1, 2, 3))).splitlines())
    assert bench.system("GET", f"{path}&tail=x").status == 422
    assert bench.system("GET", "/system/logs?name=nobody").status == 404
    for since in ("yesterday", "2026-01-01T00:00:00"):
        assert bench.system("GET", f"{path}&since={since}").status == 422
    assert bench.system("GET", "/system/logs").status == 422
    assert bench.system("GET", f"{path}&follow=maybe").status == 422
    posted = bench.system("POST", path)
    assert (posted.status, posted.headers["allow"]) == (405, "GET")


def test_a_handler_is_built_published_and_deployed(bench: Bench) -> None:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name, content in (
            (CONFIG_NAME, b'{"image": "built:1"}'),
            ("context/function/handler.py", b"def handle(event, context): ..."),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    headers = {**web.basic(bench.password), "Accept": "application/x-ndjson"}
    answer = bench.call("POST", "/build", tar.getvalue(), headers)
    lines = [json.loads(line) for line in answer.body.splitlines()]
    assert [(line["status"], line["image"]) for line in lines] == [
        ("in_progress", "built:1"),
        ("success", "built:1"),
    ]
    body = {"service": "built", "image": "built:1"}
    assert bench.system("POST", "/system/functions", body).status == 202
    digest = record(bench, "built").code_digest
    assert (bench.state / "bundles" / f"{digest}.tar.gz").exists()
    failed = bench.call("POST", "/build", b"no tar", headers)
    assert (failed.status, json.loads(failed.body)["status"]) == (200, "failed")
    assert bench.call("POST", "/build", b"no tar", web.basic(bench.password)).status == 400


def test_a_program_needs_an_fprocess_to_be_deployed(bench: Bench) -> None:
    record = ImageRecord("program:1", "0" * 64, "process")
    bench.store.put(ImageRecord.path_of(record.image), encode(record))
    time.sleep(0.1)
    body = deployment("program", image=record.image)
    refused = bench.system("POST", "/system/functions", body)
    assert refused.status == 400
    assert "or an fprocess, found neither" in refused.json()["error"]["cause"]
    assert bench.system("POST", "/system/functions", {**body, "envProcess": "cat"}).status == 202


def test_the_images_of_openfaas_own_tools_need_no_build(bench: Bench) -> None:
    names = ["functions/alpine:latest", "docker.io/functions/alpine", "theaxer/redirector:latest"]
    for number, name in enumerate(names):
        body = {"service": f"tried-{number}", "image": name, "envProcess": "env"}
        assert bench.system("POST", "/system/functions", body).status == 202
        status = bench.system("GET", f"/system/function/tried-{number}").json()
        assert (status["image"], status["envProcess"]) == (name, "env")
    first, second, third = (record(bench, f"tried-{number}").code_digest for number in range(3))
    assert first == second != third


def test_an_unknown_route_is_a_sentence(bench: Bench) -> None:
    answer = bench.call("GET", "/nothing", None, web.basic(bench.password))
    assert (answer.status, answer.headers["x-openfaas-internal"]) == (404, "gateway")
    refused = bench.system("PATCH", "/system/functions")
    assert refused.status == 405
    assert {"GET", "POST", "PUT", "DELETE"} <= set(refused.headers["allow"].split(", "))
