"""/async-function/*, through the real gunicorn, as OpenFaaS' clients and operators use it."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time

import pytest
from aiohttp import web as server
from click.testing import CliRunner, Result

from harness import web
from harness.gateway import Bench
from harness.jobs import PREFIX, QUICK, Receiver, deployed, echo, ended, status, submit
from harness.stack import wait_until
from stoker.deploy.main import main
from stoker.placement.records import Scaling
from stoker.placement.timeouts import Timeouts


def test_a_job_is_accepted_runs_and_its_answer_is_kept(bench: Bench) -> None:
    function, worker = deployed(bench, echo)
    path = f"/async-function/{function.key}/a%2Fb?x=1&y=%20"
    sent = {"Accept": "text/csv", "X-Mine": "1", **web.basic(bench.password)}
    accepted = bench.call("POST", path, b"\x00body", sent)

    assert (accepted.status, accepted.body) == (202, b"")
    call_id = accepted.headers["x-call-id"]
    assert abs(int(accepted.headers["x-start-time"]) / 1e9 - time.time()) < 60
    found = ended(bench, call_id, "done")
    assert (found["function"], found["status"], found["runs"]) == (function.key, 200, 1)
    assert (found["interruptions"], found["error"], found["callback"]) == (0, None, None)
    result = bench.system("GET", f"/async-function/{call_id}")
    assert (result.status, result.body) == (200, b"\x00body")
    assert result.headers["x-path"] == "/a%2Fb?x=1&y=%20"
    assert result.headers["x-function-status"] == "200"
    assert result.headers["x-function-name"] == function.name
    assert result.headers["x-call-id"] == call_id
    assert float(result.headers["x-duration-seconds"]) == pytest.approx(
        found["duration_seconds"], abs=1e-6
    )
    assert "set-cookie" not in result.headers
    (request,) = worker.requests
    assert (request.method, request.headers["X-Call-Id"]) == ("POST", call_id)
    assert (request.headers["Accept"], request.headers["X-Mine"]) == ("text/csv", "1")
    assert request.headers["X-Forwarded-For"] == "127.0.0.1"
    assert "Authorization" not in request.headers
    # Our own password is not written down either.
    assert bench.password.encode() not in (bench.state / "jobs" / "jobs.sqlite-wal").read_bytes()


def test_what_cannot_become_a_job_is_refused(bench: Bench) -> None:
    function, worker = deployed(bench, echo)
    unknown = bench.call("POST", "/async-function/nobody", b"x")
    assert (unknown.status, unknown.headers["x-openfaas-internal"]) == (404, "gateway")
    assert len(unknown.headers["x-call-id"]) == 36
    assert bench.call("POST", "/async-function/.openfaas-fn", b"x").status == 404
    assert bench.call("PUT", f"/async-function/{function.name}", b"x").status == 405
    large = submit(bench, function, b"x" * 1_000_001)
    assert (large.status, large.headers["x-openfaas-internal"]) == (413, "gateway")
    for url in ("http://169.254.169.254/", "http://[::1]/", "file:///x", "http://a@127.0.0.1/"):
        refused = submit(bench, function, X_Callback_Url=url, Accept="application/json")
        assert (refused.status, refused.json()["error"]["code"]) == (400, "destination_forbidden")
    assert worker.requests == []


def test_one_call_id_is_one_job(bench: Bench) -> None:
    function, worker = deployed(bench, echo)
    answers = [submit(bench, function, b"same", X_Call_Id="twice-1") for _ in range(3)]
    assert [(a.status, a.headers["x-call-id"]) for a in answers] == [(202, "twice-1")] * 3
    ended(bench, "twice-1", "done")
    assert submit(bench, function, b"same", X_Call_Id="twice-1").status == 202
    assert submit(bench, function, b"other", X_Call_Id="twice-1").status == 409
    time.sleep(0.1)
    assert len(worker.requests) == 1


def test_a_run_that_fails_is_repeated_until_it_succeeds(bench: Bench) -> None:
    codes = itertools.chain([503, 500], itertools.repeat(200))

    async def answer(request: server.Request) -> server.Response:
        return server.Response(status=next(codes), body=b"said")

    function, worker = deployed(bench, answer)
    call_id = submit(bench, function).headers["x-call-id"]
    found = ended(bench, call_id, "done")
    assert (found["runs"], found["status"], len(worker.requests)) == (3, 200, 3)
    assert {r.headers["X-Call-Id"] for r in worker.requests} == {call_id}


def test_only_the_functions_own_codes_are_repeated(bench: Bench) -> None:
    async def answer(request: server.Request) -> server.Response:
        return server.Response(status=int(request.path[1:]), body=b"said")

    function, _ = deployed(bench, answer, annotations={**QUICK, f"{PREFIX}codes": "418"})
    for code, state, runs in ((500, "done", 1), (404, "done", 1), (418, "dead", 3)):
        path = f"/async-function/{function.name}/{code}"
        call_id = bench.call("POST", path, b"x").headers["x-call-id"]
        found = ended(bench, call_id, state)
        assert (found["status"], found["runs"]) == (code, runs)
        assert bench.system("GET", f"/async-function/{call_id}").body == b"said"


def test_what_failed_for_good_is_kept_and_can_be_retried(bench: Bench) -> None:
    well = threading.Event()

    async def answer(request: server.Request) -> server.Response:
        return server.Response(status=200 if well.is_set() else 500, body=await request.read())

    function, worker = deployed(bench, answer)
    call_id = submit(bench, function, b"kept").headers["x-call-id"]
    ended(bench, call_id, "dead")
    assert len(worker.requests) == 3
    listed = bench.system("GET", f"/system/async?state=dead&function={function.name}").json()
    assert [job["call_id"] for job in listed] == [call_id]
    # Accepted once more, it is still the one that failed.
    assert submit(bench, function, b"kept", X_Call_Id=call_id).status == 202
    assert status(bench, call_id)["state"] == "dead"

    well.set()
    assert bench.system("POST", f"/system/async/{call_id}/retry").status == 202
    assert ended(bench, call_id, "done")["runs"] == 1
    assert bench.system("GET", f"/async-function/{call_id}").body == b"kept"
    again = bench.system("POST", f"/system/async/{call_id}/retry")
    assert (again.status, again.json()["error"]["code"]) == (409, "conflict")


def test_a_function_that_is_gone_leaves_a_dead_job_with_its_reason(bench: Bench) -> None:
    gate = threading.Event()

    async def answer(request: server.Request) -> server.Response:
        await asyncio.to_thread(gate.wait, 20)
        return server.Response(status=500)

    function, _ = deployed(bench, answer)
    call_id = submit(bench, function).headers["x-call-id"]
    wait_until(lambda: status(bench, call_id)["state"] == "running", "it runs")
    assert bench.system("DELETE", "/system/functions", {"functionName": function.name}).status < 300
    gate.set()
    wait_until(lambda: status(bench, call_id)["state"] == "dead", "it is dead", 30)
    assert status(bench, call_id)["error"]["code"] == "function_not_found"


def test_a_waiting_job_is_cancelled_and_never_runs(bench: Bench) -> None:
    async def busy(request: server.Request) -> server.Response:
        return server.Response(status=503)

    function, worker = deployed(bench, busy, annotations={f"{PREFIX}min_wait": "60s"})
    call_id = submit(bench, function).headers["x-call-id"]
    wait_until(lambda: status(bench, call_id)["status"] == 503, "it has failed once")
    pending = bench.system("GET", f"/async-function/{call_id}")
    assert (pending.status, pending.json()["state"]) == (202, "waiting")
    assert pending.json()["due_at"] > time.time() + 20
    assert bench.system("DELETE", f"/async-function/{call_id}").status == 202
    assert status(bench, call_id)["state"] == "cancelled"
    assert bench.system("GET", f"/async-function/{call_id}").status == 409
    assert len(worker.requests) == 1


def test_a_running_job_is_cancelled_and_its_instance_freed_within_a_second(bench: Bench) -> None:
    async def forever(request: server.Request) -> server.Response:
        await asyncio.sleep(60)
        return server.Response()

    function, worker = deployed(bench, forever)
    call_id = submit(bench, function, X_Call_Id="a/b?c").headers["x-call-id"]
    assert call_id == "a/b?c"
    wait_until(lambda: worker.in_flight == 1, "it runs")
    assert bench.system("DELETE", "/async-function/a%2Fb%3Fc").status == 202
    assert worker.cancelled.wait(1)
    ended(bench, "a%2Fb%3Fc", "cancelled")
    assert bench.system("DELETE", "/async-function/a%2Fb%3Fc").status == 202


def test_what_is_told_of_jobs_wants_the_password(bench: Bench) -> None:
    for method, path in (
        *(("GET", "/async-function/x"), ("DELETE", "/async-function/x")),
        *(("GET", "/system/async"), ("GET", "/system/async/x")),
        *(("POST", "/system/async/x/retry"), ("GET", "/system/async/x/nothing")),
    ):
        for headers in (None, web.basic("wrong"), {"Authorization": "Bearer "}):
            assert bench.call(method, path, None, headers).status == 401, (method, path)
        assert bench.system(method, path).status in (200, 404), (method, path)
    assert bench.system("GET", "/system/async?state=lost").status == 400
    assert bench.system("GET", "/system/async?limit=x").status == 400


def test_a_function_takes_no_more_jobs_at_once_than_its_share(bench: Bench) -> None:
    """And another function's job does not wait behind them."""
    gate = threading.Event()

    async def slow(request: server.Request) -> server.Response:
        await asyncio.to_thread(gate.wait, 20)
        return server.Response()

    crowded, worker = deployed(bench, slow, scaling=Scaling(concurrency=100))
    other, _ = deployed(bench, echo)
    for _ in range(20):
        assert submit(bench, crowded).status == 202
    wait_until(lambda: worker.in_flight == 16, "sixteen run")
    call_id = submit(bench, other).headers["x-call-id"]
    ended(bench, call_id, "done")
    assert worker.in_flight_maximum == 16
    gate.set()
    wait_until(lambda: len(worker.requests) == 20, "all ran")


def test_an_answer_that_is_too_long_to_keep_is_a_dead_job_and_not_repeated(bench: Bench) -> None:
    async def endless(request: server.Request) -> server.StreamResponse:
        response = server.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 1_000_000)
            await asyncio.sleep(0)

    function, worker = deployed(bench, endless)
    call_id = submit(bench, function).headers["x-call-id"]
    found = ended(bench, call_id, "dead")
    assert (found["error"]["code"], found["result_bytes"]) == ("payload_too_large", 0)
    assert len(worker.requests) == 1
    wait_until(lambda: worker.in_flight == 0, "the instance is let go", 2)


def test_an_answer_that_is_cut_at_a_timeout_is_no_success(bench: Bench) -> None:
    async def drips(request: server.Request) -> server.StreamResponse:
        response = server.StreamResponse()
        await response.prepare(request)
        await response.write(b"half")
        await asyncio.sleep(30)
        return response

    once = {**QUICK, f"{PREFIX}attempts": "0"}
    function, _ = deployed(bench, drips, annotations=once, timeouts=Timeouts(request_seconds=0.2))
    found = ended(bench, submit(bench, function).headers["x-call-id"], "dead")
    assert (found["status"], found["error"]["code"]) == (504, "deadline_exceeded")


def test_metrics_tell_depth_age_and_outcomes(bench: Bench) -> None:
    function, _ = deployed(bench, echo)
    ended(bench, submit(bench, function).headers["x-call-id"], "done")
    text = bench.system("GET", "/metrics").body.decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[:1] != "#")
    assert float(values['gateway_jobs{queue="invoke",state="done"}']) >= 1
    assert float(values['gateway_jobs_ended_total{outcome="done",queue="invoke"}']) >= 1
    assert float(values["gateway_jobs_accepted_total"]) >= 1
    assert values["gateway_jobs_interrupted_total"] == "0.0"
    assert float(values['gateway_jobs_overdue_seconds{queue="invoke"}']) < 60


def test_a_retry_annotation_that_is_wrong_is_refused_at_deploy(bench: Bench) -> None:
    body = {"service": "wrong", "image": "x", "annotations": {f"{PREFIX}codes": "often"}}
    answer = bench.system("POST", "/system/functions", body)
    assert (answer.status, answer.json()["error"]["code"]) == (400, "bad_spec")
    assert f"{PREFIX}codes" in answer.json()["error"]["cause"]


def run(bench: Bench, *arguments: str) -> Result:
    variables = {"STOKER_GATEWAY": bench.url, "STOKER_PASSWORD": bench.password}
    return CliRunner().invoke(main, arguments, env=variables)


def test_the_command_line_queues_shows_cancels_and_retries(bench: Bench) -> None:
    well = threading.Event()

    async def answer(request: server.Request) -> server.Response:
        return server.Response(status=200 if well.is_set() else 500, body=await request.read())

    function, _ = deployed(bench, answer, annotations={**QUICK, f"{PREFIX}attempts": "0"})
    receiver = Receiver(bench)
    queued = run(bench, "invoke", function.name, "-d", "hi", "--async", "--callback", receiver.url)
    call_id = queued.output.strip()
    assert (queued.exit_code, len(call_id)) == (0, 36)
    ended(bench, call_id, "dead")
    rows = run(bench, "jobs", "dead", "ls").output.splitlines()
    row = next(row.split("\t") for row in rows if row.startswith(call_id))
    assert row[1:4] == [function.key, "dead", "1"]

    well.set()
    assert run(bench, "jobs", "dead", "retry", call_id).output == f"Retried {call_id}\n"
    ended(bench, call_id, "done")
    assert run(bench, "jobs", "result", call_id).output == "hi"
    shown = json.loads(run(bench, "jobs", "show", call_id, "--json").output)
    assert (shown["state"], shown["callback"]["queue"]) == ("done", "callback")
    assert "callback state" in run(bench, "jobs", "show", call_id).output
    listed = run(bench, "jobs", "ls", "--function", function.name, "--json")
    assert [job["call_id"] for job in json.loads(listed.output)] == [call_id]
    refused = run(bench, "jobs", "cancel", call_id)
    assert (refused.exit_code, "Nothing of it is left" in refused.output) == (1, True)
    assert run(bench, "jobs", "result", "nobody").exit_code == 1
    assert run(bench, "jobs", "dead", "retry").exit_code == 2


def token(bench: Bench, name: str) -> dict[str, str]:
    """The headers of who may invoke one function of the default namespace."""
    asked = {"scope": "function", "namespace": "openfaas-fn", "function": name}
    told = bench.system("POST", "/system/tokens", asked | {"permission": "invoke"}).json()
    return web.bearer(told["token"])


def test_a_token_reaches_the_jobs_of_its_own_functions_alone(bench: Bench) -> None:
    """And the job of a function that wants one runs though the token is not written down."""
    closed = {**QUICK, "stoker/auth": "token"}
    function, worker = deployed(bench, echo, annotations=closed)
    own, foreign = (token(bench, name) for name in (function.name, "other"))
    path = f"/async-function/{function.name}"
    assert bench.call("POST", path, b"x").status == 401
    assert bench.call("POST", path, b"x", foreign).status == 403
    accepted = bench.call("POST", path, b"x", own)
    call_id = accepted.headers["x-call-id"]
    assert accepted.status == 202
    ended(bench, call_id, "done")
    assert "Authorization" not in worker.requests[0].headers

    job = f"/async-function/{call_id}"
    assert (bench.call("GET", job, None, own).status, bench.call("GET", job).status) == (200, 401)
    for method in ("GET", "DELETE"):
        assert bench.call(method, job, None, foreign).status == 403
    assert bench.call("DELETE", job, None, own).status == 409
    for headers in (own, foreign):
        assert bench.call("GET", "/system/async", None, headers).status == 403
        assert bench.call("POST", f"/system/async/{call_id}/retry", None, headers).status == 403
    lines = (bench.state / "audit" / "gateway.jsonl").read_text().splitlines()
    noted = [line for line in map(json.loads, lines) if line["path"] == job]
    assert [(line["method"], line["status"]) for line in noted] == [
        ("DELETE", 403),
        ("DELETE", 409),
    ]
