"""Functions of Knative and functions-framework, deployed as their users do, called with events."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import web
from harness.stack import Stack, wait_until

FIXTURES = Path(__file__).resolve().parents[1] / "functions"
DOMAIN = "fn.example.com"
FRAMED = ("ff-http", "ff-cloudevent", "ff-typed")
REQUIRED = {"id": "7", "source": "/orders", "type": "order.made", "specversion": "1.0"}
BINARY = {f"ce-{name}": value for name, value in REQUIRED.items()} | {
    "Content-Type": "application/json"
}
STRUCTURED = {"Content-Type": "application/cloudevents+json; charset=utf-8"}
BATCH = {"Content-Type": "application/cloudevents-batch+json"}
REPLY = {"Prefer": "reply"}


@pytest.fixture(scope="module", autouse=True)
def framed(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The functions for functions-framework, in its three modes."""
    path = tmp_path_factory.mktemp("framed") / "stack.yaml"
    functions = {
        name: {"lang": "python3-stoker", "handler": str(FIXTURES / name), "image": f"{name}:1"}
        for name in FRAMED
    }
    path.write_text(yaml.safe_dump({"provider": {"name": "openfaas"}, "functions": functions}))
    stack.run("deploy", "-f", str(path))
    yield
    for name in FRAMED:
        stack.remove(name)


def post(stack: Stack, name: str, body: Any, headers: Mapping[str, str]) -> web.Answer:
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    return web.call("POST", f"{stack.url}/function/{name}", payload, dict(headers))


def logged_events(stack: Stack, count: int) -> list[dict[str, Any]]:
    """The events that ff-cloudevent wrote to its log, once there are so many."""

    def found() -> list[str]:
        return re.findall(r"event (\{.*\})", stack.run("logs", "ff-cloudevent").stdout)

    wait_until(lambda: len(found()) >= count, f"{count} events are in the log")
    return [json.loads(line) for line in found()]


def test_a_function_of_http_gets_what_was_sent_and_answers_options_itself(stack: Stack) -> None:
    plain = post(stack, "ff-http/a/b", {"n": 1}, {"Content-Type": "application/json"})
    event = post(stack, "ff-http", REQUIRED | {"data": 1}, STRUCTURED)
    asks = {"WebHook-Request-Origin": "sender.example"}
    options = web.call("OPTIONS", f"{stack.url}/function/ff-http", None, asks)

    assert plain.json() == {"got": {"n": 1}, "path": "/a/b"}
    assert event.headers["x-kind"] == STRUCTURED["Content-Type"]
    assert json.loads(event.body) == REQUIRED | {"data": 1}
    assert (options.status, options.headers["access-control-allow-origin"]) == (204, "*")
    assert "webhook-allowed-origin" not in options.headers


def test_a_function_of_events_gets_the_same_event_in_every_mode(stack: Stack) -> None:
    before = len(re.findall("event {", stack.run("logs", "ff-cloudevent").stdout))
    event = REQUIRED | {"subject": "Euro € 100%25", "data": {"n": 1}}
    event["datacontenttype"] = "application/json"
    encoded = BINARY | {"ce-subject": "Euro%20%E2%82%AC%20100%2525"}

    answers = [
        post(stack, "ff-cloudevent", {"n": 1}, encoded),
        post(stack, "ff-cloudevent", event, STRUCTURED),
        post(stack, "ff-cloudevent", [event, event], BATCH),
    ]

    assert [answer.status for answer in answers] == [200, 200, 202]
    got = logged_events(stack, before + 4)[before:]
    assert [(each["subject"], each["data"], each["id"]) for each in got] == [
        ("Euro € 100%25", {"n": 1}, "7")
    ] * 4


def test_what_is_no_event_is_refused_and_a_failure_is_one(stack: Stack) -> None:
    refused = [
        post(stack, "ff-cloudevent", {}, {"Content-Type": "application/json"}),
        post(stack, "ff-cloudevent", b"{", STRUCTURED),
        post(stack, "ff-cloudevent", {"id": "7"}, STRUCTURED),
        post(stack, "ff-cloudevent", {}, BINARY | {"ce-subject": "%FF"}),
        post(stack, "ff-cloudevent", [REQUIRED, {}], BATCH),
    ]
    failed = post(stack, "ff-cloudevent", {}, BINARY | {"ce-type": "fail"})
    wrong_method = web.call("GET", f"{stack.url}/function/ff-cloudevent", None, {})

    assert [answer.status for answer in refused] == [400] * 5
    assert failed.status == 500
    assert wrong_method.status == 405


def test_a_sender_of_events_may_ask_whether_it_may_send(stack: Stack) -> None:
    asks = {"WebHook-Request-Origin": "sender.example", "WebHook-Request-Rate": "120"}
    url = f"{stack.url}/function/ff-cloudevent"

    consent = web.call("OPTIONS", url, None, asks)
    plain = web.call("OPTIONS", url, None, {})

    assert consent.headers["webhook-allowed-origin"] == "sender.example"
    assert consent.headers["webhook-allowed-rate"] == "*"
    assert (plain.status, plain.headers["allow"]) == (200, "POST")


def test_a_typed_function_gets_the_data_of_an_event(stack: Stack) -> None:
    plain = post(stack, "ff-typed", {"value": 21}, {"Content-Type": "application/json"})
    binary = post(stack, "ff-typed", {"value": 21}, BINARY)
    structured = post(stack, "ff-typed", REQUIRED | {"data": {"value": 21}}, STRUCTURED)
    invalid = post(stack, "ff-typed", {"other": 1}, {"Content-Type": "application/json"})

    assert [answer.json() for answer in (plain, binary, structured)] == [{"value": 42}] * 3
    assert invalid.status == 500


def test_a_router_of_events_gets_an_event_or_nothing(stack: Stack) -> None:
    silent = post(stack, "ff-cloudevent", {"n": 1}, BINARY | REPLY)

    assert (silent.status, silent.body) == (202, b"")


def test_a_project_of_func_runs_unchanged_and_is_found_by_its_host(stack: Stack) -> None:
    deployed = stack.run("deploy", "-f", str(FIXTURES / "func-http" / "func.yaml"))
    wait_until(
        lambda: any(i["state"] == "serving" for i in stack.instances("func-http")),
        "a deployed service starts one instance by itself",
    )
    host = {"Host": f"func-http.openfaas-fn.{DOMAIN}:80"}
    answer = web.call("POST", f"{stack.url}/any/path", b"you", host)
    health = web.call("GET", f"{stack.url}/health/readiness", None, host)

    assert "registry changes nothing" in deployed.stderr
    assert (answer.status, answer.body) == (200, b"Hello you")
    assert (health.status, health.body) == (200, b"Ready")
    exported = yaml.safe_load(stack.run("export", "knative", "func-http").stdout)
    assert exported["spec"]["template"]["spec"]["containerConcurrency"] == 1
    assert exported["spec"]["template"]["spec"]["timeoutSeconds"] == 300
    stack.remove("func-http")


def test_a_project_of_func_for_events_gets_an_environment_with_its_runtime(stack: Stack) -> None:
    stack.run("deploy", "-f", str(FIXTURES / "func-cloudevent" / "func.yaml"))
    event = REQUIRED | {"subject": "a b%20c", "data": {"n": 1}}
    mixed = STRUCTURED | {"ce-id": "other", "ce-type": "other"}

    binary = post(stack, "func-cloudevent", {"n": 1}, BINARY | {"ce-subject": "a%20b%2520c"})
    structured = post(stack, "func-cloudevent", event, mixed)
    batch = post(stack, "func-cloudevent", [event], BATCH | REPLY)
    refused = post(stack, "func-cloudevent", {}, {"Content-Type": "application/json"})

    assert binary.status == 200, binary.body
    replies = [binary.json(), structured.json(), *batch.json()]
    assert [reply["id"] for reply in replies] == ["response-7"] * 3
    assert [reply["subject"] for reply in replies] == ["a b%20c"] * 3
    assert [reply["data"] for reply in replies] == [{"message": "OK", "got": {"n": 1}}] * 3
    assert batch.headers["content-type"] == "application/cloudevents-batch+json"
    assert refused.status == 400
    stack.remove("func-cloudevent")


def test_a_model_answers_an_event_with_an_event(stack: Stack, chat: str) -> None:
    question = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}

    plain = post(stack, chat, question, BINARY)
    reply = post(stack, chat, question, BINARY | REPLY)
    as_json = post(stack, chat, REQUIRED | {"data": question}, STRUCTURED | REPLY)

    assert plain.json()["object"] == "chat.completion"
    assert reply.headers["ce-type"] == "stoker.reply"
    assert reply.headers["ce-source"] == f"/function/{chat}.openfaas-fn"
    assert reply.json()["object"] == "chat.completion"
    assert as_json.json()["causationid"] == "7"
    assert as_json.json()["data"]["object"] == "chat.completion"
