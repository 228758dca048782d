"""Tokens: who has one may do what it says and nothing else, and the store never knows it."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import pytest
from aiohttp import web as server
from hypothesis import given
from hypothesis import strategies as st

from harness import web
from harness.gateway import Bench
from harness.routes import every_route
from harness.stack import wait_until
from stoker.gateway.access import check_control, stated
from stoker.gateway.auth import digest_of, new_token
from stoker.placement.errors import Forbidden
from stoker.placement.records import ImageRecord, encode
from stoker.placement.token_record import TokenRecord

IN_TEAM = {"scope": "namespace", "namespace": "team"}


async def ok(request: server.Request) -> server.Response:
    return server.Response(text=request.headers.get("Authorization", "none"))


def made(bench: Bench, **fields: Any) -> dict[str, Any]:
    answer = bench.system("POST", "/system/tokens", fields)
    assert answer.status == 201, answer.body
    told: dict[str, Any] = answer.json()
    return told


def image(bench: Bench) -> str:
    bench.store.put(ImageRecord.path_of("t:1"), encode(ImageRecord("t:1", "0" * 64)))
    time.sleep(0.1)
    return "t:1"


def test_a_token_is_told_once_and_kept_as_a_hash(bench: Bench) -> None:
    told = made(bench, name="ci", permission="manage", limits={"concurrency": 3}, **IN_TEAM)
    token = told.pop("token")
    assert told["covers"] == "namespace team"
    assert [t for t in bench.system("GET", "/system/tokens").json() if t["id"] == told["id"]] == [
        told
    ]
    entry = bench.store.get(f"/tokens/{told['id']}")
    assert entry is not None
    assert token not in entry.value.decode()
    assert json.loads(entry.value)["digest"] == digest_of(token)
    for file in bench.state.rglob("*"):
        if file.is_file():
            assert token.encode() not in file.read_bytes(), file


def test_a_revoked_token_is_refused_at_once(bench: Bench) -> None:
    told = made(bench, scope="admin", permission="manage")
    assert bench.call("GET", "/system/nodes", None, web.bearer(told["token"])).status == 200
    assert bench.system("DELETE", f"/system/tokens/{told['id']}").status == 204
    assert bench.call("GET", "/system/nodes", None, web.bearer(told["token"])).status == 401
    assert bench.system("DELETE", f"/system/tokens/{told['id']}").status == 404


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "scope"),
        ({"scope": "root"}, "scope"),
        ({"scope": "admin", "permission": "all"}, "permission"),
        ({"scope": "admin", "namespace": "team"}, "namespace"),
        ({"scope": "namespace"}, "namespace"),
        ({"scope": "namespace", "namespace": "../x"}, "namespace"),
        ({"scope": "function", "namespace": "team"}, "function"),
        ({"scope": "function", "namespace": "team", "function": "a.b"}, "function"),
        ({"scope": "admin", "name": "a\nb"}, "name"),
        ({"scope": "admin", "limits": {"concurrency": 0}}, "concurrency"),
        ({"scope": "admin", "limits": {"requestsPerSecond": 1e400}}, "JSON"),
        ({"scope": "admin", "limits": {"burst": 1}}, "limits"),
    ],
)
def test_a_token_that_makes_no_sense_is_refused(
    bench: Bench, body: dict[str, Any], said: str
) -> None:
    answer = bench.system("POST", "/system/tokens", body)
    assert (answer.status, said in answer.body.decode()) == (400, True), answer.body


def test_a_token_is_taken_as_bearer_and_as_the_password_of_any_user(bench: Bench) -> None:
    token = made(bench, permission="manage", **IN_TEAM)["token"]
    path = "/system/functions?namespace=team"
    assert bench.call("GET", path, None, web.bearer(token)).status == 200
    assert bench.call("GET", path, None, web.basic(token)).status == 200
    assert bench.call("GET", path, None, web.basic(token, "somebody")).status == 200
    assert bench.call("GET", path, None, web.basic(bench.password, "somebody")).status == 401
    changed = token[:-1] + ("A" if token[-1] != "A" else "B")
    assert bench.call("GET", path, None, web.bearer(changed)).status == 401


def test_a_namespaces_token_rules_there_and_nowhere_else(bench: Bench) -> None:
    mine = web.bearer(made(bench, permission="manage", **IN_TEAM)["token"])
    name = image(bench)
    for namespace in ("team", "other"):
        bench.system("POST", "/system/namespace/", {"name": namespace})
        bench.function(name="shared", namespace=namespace)
    body = {"service": "fresh", "image": name}
    assert bench.call("POST", "/system/functions?namespace=team", body, mine).status == 202
    put = bench.call("PUT", "/system/functions", body | {"namespace": "team"}, mine)
    assert put.status == 202
    scale = {"serviceName": "shared", "replicas": 0, "namespace": "team"}
    assert bench.call("POST", "/system/scale-function/shared", scale, mine).status == 202
    places = itertools.product(("team", "other", None), repeat=3)
    for in_query, in_body, in_name in places:
        if {in_query, in_body, in_name} - {None} == {"team"}:
            continue
        query = f"?namespace={in_query}" if in_query else ""
        named = f"shared.{in_name}" if in_name else "shared"
        fields = {"namespace": in_body} if in_body else {}
        tried = [
            ("GET", f"/system/function/{named}{query}", None),
            ("POST", f"/system/scale-function/{named}{query}", {"replicas": 9, **fields}),
            ("POST", f"/system/evict-function/{named}{query}", fields),
            ("PUT", f"/system/functions{query}", {**body, "service": named, **fields}),
            ("POST", f"/system/functions{query}", {**body, "service": named, **fields}),
            ("DELETE", f"/system/functions{query}", {"functionName": named, **fields}),
            ("GET", f"/system/logs?name={named}&{query[1:]}", None),
        ]
        for method, path, sent in tried:
            if method == "GET" and {in_query, in_name} - {None} == {"team"}:
                continue
            assert bench.call(method, path, sent, mine).status == 403, (method, path, sent)
    assert bench.system("GET", "/system/function/shared?namespace=other").status == 200
    assert bench.call("GET", "/system/functions?namespace=other", None, mine).status == 403
    assert bench.call("GET", "/system/info", None, mine).status == 200


def test_what_is_not_about_a_namespace_is_for_administrators(bench: Bench) -> None:
    mine = web.bearer(made(bench, permission="manage", **IN_TEAM)["token"])
    for_all = ("/system/info", "/openapi.json")
    scoped = ("/system/function", "/system/scale", "/system/evict", "/system/logs")
    tried = [
        (method, path)
        for method, path in every_route()
        if path.startswith(("/system/", "/build", "/metrics"))
        and path not in for_all
        and not path.startswith(scoped)
    ]
    assert len(tried) > 10
    statuses = {route: bench.call(*route, None, mine).status for route in tried}
    assert {route for route, status in statuses.items() if status != 403} == set()


def test_a_token_to_invoke_manages_nothing(bench: Bench) -> None:
    for fields in ({"scope": "admin"}, IN_TEAM):
        mine = web.bearer(made(bench, permission="invoke", **fields)["token"])
        path = "/system/functions?namespace=team"
        assert bench.call("GET", path, None, mine).status == 403
        assert bench.call("POST", "/system/tokens", {"scope": "admin"}, mine).status == 403


def test_a_function_that_wants_a_token_is_closed_to_others(bench: Bench) -> None:
    worker = bench.worker(ok)
    closed = bench.function(namespace="team", annotations={"stoker/auth": "token"})
    opened = bench.function(namespace="team")
    for function in (closed, opened):
        bench.instance(function, worker.address)
    path = f"/function/{closed.key}"
    refused = bench.call("POST", path, b"x")
    assert (refused.status, refused.body) == (401, b"invalid credentials")
    assert bench.call("POST", path, b"x", {"Authorization": "Bearer own"}).status == 401
    only = {"scope": "function", "namespace": "team"}
    tokens = {
        "function": made(bench, function=closed.name, **only)["token"],
        "namespace": made(bench, **IN_TEAM)["token"],
        "admin": made(bench, scope="admin")["token"],
    }
    for token in (*tokens.values(), bench.password):
        answer = bench.call("POST", path, b"x", web.bearer(token))
        assert (answer.status, answer.body) == (200, b"none")
    foreign = (
        made(bench, function=opened.name, **only)["token"],
        made(bench, scope="namespace", namespace="other")["token"],
    )
    for token in foreign:
        answer = bench.call("POST", path, b"x", web.bearer(token) | {"Accept": "application/json"})
        assert (answer.status, answer.json()["error"]["code"]) == (403, "forbidden")
        assert token not in answer.body.decode()
    assert bench.call("POST", f"/function/{opened.key}", b"x").status == 200


def test_a_model_is_called_and_listed_by_who_may(bench: Bench) -> None:
    worker = bench.worker(ok)
    mine = bench.function(task="chat", namespace="team")
    other = bench.function(task="chat", namespace="other")
    for function in (mine, other):
        bench.instance(function, worker.address)
    headers = web.bearer(made(bench, **IN_TEAM)["token"])
    listed = [m["id"] for m in bench.call("GET", "/v1/models", None, headers).json()["data"]]
    assert mine.key in listed
    assert other.key not in listed
    for function, status in ((mine, 200), (other, 403)):
        body = {"model": function.key, "messages": [{"role": "user", "content": "x"}]}
        assert bench.call("POST", "/v1/chat/completions", body, headers).status == status
        assert bench.call("GET", f"/v1/models/{function.key}", None, headers).status == status


def test_admin_actions_are_in_the_audit_log_and_secrets_are_not(bench: Bench) -> None:
    told = made(bench, name="audited", permission="manage", **IN_TEAM)
    mine = web.bearer(told["token"])
    canary = "canary-3f9a"
    body = {"service": "a\u001b[31m\nb", "image": "x", "envVars": {"KEY": canary}}
    assert bench.call("PUT", "/system/functions?namespace=team", body, mine).status == 400
    bench.call("DELETE", "/system/functions?namespace=other", {"functionName": "f"}, mine)
    bench.call("DELETE", "/system/functions", {"functionName": "unknown"})
    file = bench.state / "audit" / "gateway.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    own = [line for line in lines if line["token"] == told["id"]]
    assert [(line["method"], line["path"], line["status"]) for line in own] == [
        ("PUT", "/system/functions", 400),
        ("DELETE", "/system/functions", 403),
    ]
    assert (own[0]["namespaces"], own[0]["functions"]) == (["team"], ["a\x1b[31m\nb"])
    assert own[0]["peer"] == "127.0.0.1"
    created = [line for line in lines if line["status"] == 201]
    assert {line["token"] for line in created} == {"admin"}
    text = file.read_text()
    assert not {canary, told["token"], bench.password} & set(text.split('"'))
    assert "\x1b" not in text
    assert "unknown" not in text
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_new_token_reaches_the_gateway_by_its_watch(bench: Bench) -> None:
    token_id, token = new_token()
    record = TokenRecord(token_id, "by hand", digest_of(token), "admin", "manage")
    bench.store.put(record.path, encode(record))
    headers = web.bearer(token)
    wait_until(lambda: bench.call("GET", "/system/nodes", None, headers).status == 200, "known")


texts = st.sampled_from(["team", "other", "", "a.team", "a.other", "team.team"])


@given(query=st.lists(texts, max_size=2), body=texts, name=texts, method=st.sampled_from(["PUT"]))
def test_nothing_passes_that_names_another_namespace(
    query: list[str], body: str, name: str, method: str
) -> None:
    token = TokenRecord("t", "", "", "namespace", "manage", "team")
    sent = json.dumps({"namespace": body, "service": name}).encode()
    words = {"namespace": query}
    try:
        check_control(token, method, "/system/functions", words, sent)
    except Forbidden:
        return
    assert stated(method, "/system/functions", words, sent).namespaces == {"team"}
    assert {*query, body, name.partition(".")[2]} <= {"team", ""}
    assert "team" in {*query, body, name.partition(".")[2]}


@pytest.mark.parametrize("scope", ["function", "namespace"])
def test_only_who_manages_a_namespace_gives_its_functions_secrets(scope: str) -> None:
    function = "f" if scope == "function" else ""
    token = TokenRecord("t", "", "", scope, "manage", "team", function)  # type: ignore[arg-type]
    for secrets in ([], ["key"]):
        sent = json.dumps({"namespace": "team", "service": "f", "secrets": secrets}).encode()
        if secrets and scope == "function":
            with pytest.raises(Forbidden):
                check_control(token, "PUT", "/system/functions", {}, sent)
        else:
            check_control(token, "PUT", "/system/functions", {}, sent)
