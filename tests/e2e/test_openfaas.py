"""What OpenFaaS' provider certifier does, in its order, and then what faas-cli sends.

An empty gateway with authentication, two namespaces, and the certifier's own images.
"""

from __future__ import annotations

import base64
import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import pytest

from harness import web
from harness.stack import Stack, wait_until

ALPINE = "functions/alpine:latest"
REDIRECTOR = "docker.io/theaxer/redirector:latest"
NAMESPACES = ("openfaas-fn", "certify")


class Client:
    """Sends what the certifier and faas-cli send."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    def system(self, method: str, path: str, body: Any = None) -> web.Answer:
        url = f"{self.stack.url}/system/{path}"
        return web.call(method, url, body, web.basic(self.stack.password))

    def deploy(self, name: str, namespace: str = "openfaas-fn", **fields: Any) -> None:
        body = {"service": name, "namespace": namespace, "image": ALPINE, **fields}
        answer = self.system("POST", "functions", body)
        assert answer.status in (200, 202), answer.body

    def remove(self, name: str, namespace: str = "openfaas-fn") -> None:
        query = f"functions?namespace={namespace}"
        assert self.system("DELETE", query, {"functionName": name}).status in (200, 202)

    def status(self, name: str, namespace: str = "openfaas-fn") -> dict[str, Any]:
        found: dict[str, Any] = self.system(
            "GET", f"function/{name}?namespace={namespace}&usage=1"
        ).json()
        return found

    def scale(self, name: str, replicas: int) -> None:
        body = {"serviceName": name, "replicas": replicas}
        answer = self.system("POST", f"scale-function/{name}?namespace=openfaas-fn", body)
        assert answer.status in (200, 202)

    def call(
        self, name: str, method: str = "POST", headers: Mapping[str, str] | None = None
    ) -> web.Answer:
        return web.call(method, f"{self.stack.url}/function/{name}", b"", headers)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    state = tmp_path_factory.mktemp("certified") / "state"
    running = Stack(state, arguments=("--dram-bytes", "64MiB")).start()
    yield Client(running)
    running.stop()


def test_01_an_empty_gateway_lists_no_functions_and_exactly_its_namespaces(client: Client) -> None:
    assert client.system("GET", "functions").json() == []
    assert client.system("POST", "namespace/", {"name": "certify"}).status == 201
    assert client.system("GET", "namespaces").json() == ["certify", "openfaas-fn"]


def test_02_health_and_provider_info(client: Client) -> None:
    assert web.call("GET", f"{client.stack.url}/healthz").status == 200
    info = client.system("GET", "info").json()
    assert info["provider"]["provider"] not in ("", "faasd")
    assert all(info["provider"]["version"][key] for key in ("sha", "release"))
    assert info["provider"]["orchestration"]
    assert all(info["version"][key] for key in ("sha", "release", "commit_message"))
    assert info["arch"]


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_03_what_was_deployed_reads_back_as_it_was_sent(client: Client, namespace: str) -> None:
    full = {
        "envProcess": "env",
        "envVars": {"a": "b"},
        "labels": {"team": "x"},
        "annotations": {"note": "y"},
        "limits": {"memory": "128Mi", "cpu": "500m"},
        "requests": {"memory": "20Mi"},
        "constraints": ["node.platform.os == linux"],
        "readOnlyRootFilesystem": True,
    }
    client.deploy("full", namespace, **full)
    client.deploy("bare", namespace, envProcess="env")
    listed = {f["name"]: f for f in client.system("GET", f"functions?namespace={namespace}").json()}
    assert {*listed} == {"full", "bare"}
    told = listed["full"]
    assert {key: told[key] for key in full} == {
        **full,
        "labels": {"team": "x", "faas_function": "full"},
    }
    assert (told["image"], told["namespace"]) == (ALPINE, namespace)
    datetime.fromisoformat(told["createdAt"])
    bare = client.status("bare", namespace)
    assert (bare["labels"], bare["annotations"]) == ({"faas_function": "bare"}, {})
    assert not {"envVars", "limits", "requests", "secrets", "constraints"} & {*bare}
    for name in ("full", "bare"):
        client.remove(name, namespace)
    assert client.system("GET", f"functions?namespace={namespace}").json() == []


def test_04_calls_without_a_name_and_of_unknown_functions_are_404(client: Client) -> None:
    for name in ("", ".openfaas-fn", "nobody", "nobody.certify", "nobody.nowhere"):
        assert client.call(name).status == 404
    for path in ("functions", "functions?namespace=certify"):
        assert client.system("DELETE", path, {"functionName": "nobody"}).status == 404
    assert client.system("PUT", "functions", {"service": "nobody", "image": ALPINE}).status == 404
    assert client.system("GET", "function/nobody").status == 404


def test_05_five_verbs_with_call_id_and_start_time(client: Client) -> None:
    client.deploy("verbs", "certify", envProcess="env")
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        answer = client.call("verbs.certify", method, {"X-Call-Id": f"id-{method}"})
        assert answer.status == 200
        assert f"Http_Method={method}" in answer.body.decode().splitlines()
        assert answer.headers["x-call-id"] == f"id-{method}"
        assert abs(int(answer.headers["x-start-time"]) / 1e9 - time.time()) < 60
        assert float(answer.headers["x-duration-seconds"]) >= 0
        assert answer.headers["x-served-by"]
    assert client.call("verbs.certify").headers["x-call-id"]
    refused = client.call("verbs.certify", "TRACE")
    assert (refused.status, "DELETE" in refused.headers["allow"]) == (405, True)
    client.remove("verbs", "certify")


def test_06_a_redirect_is_passed_through(client: Client) -> None:
    target = "http://example.com/elsewhere"
    client.deploy("redirector", image=REDIRECTOR, envVars={"destination": target})
    answer = client.call("redirector")
    assert (answer.status, answer.headers["location"]) == (302, target)
    assert client.status("redirector")["image"] == REDIRECTOR
    client.remove("redirector")


def test_07_environment_and_query_are_visible(client: Client) -> None:
    client.deploy("environment", envProcess="env", envVars={"custom_env": "custom_value"})
    lines = client.call("environment?testing=1&x=y", "GET").body.decode().splitlines()
    assert {"custom_env=custom_value", "Http_Query=testing=1&x=y"} <= {*lines}
    assert {"OPENFAAS_NAME=environment", "OPENFAAS_NAMESPACE=openfaas-fn"} <= {*lines}


def test_08_logs_end_where_they_are_not_followed(client: Client) -> None:
    path = "logs?name=environment&namespace=openfaas-fn&tail=-1&follow=false"
    wait_until(lambda: b"Wrote " in client.system("GET", path).body, "the call is in the log")
    answer = client.system("GET", path)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/x-ndjson")
    lines = [json.loads(line) for line in answer.body.splitlines()]
    assert {(line["name"], line["namespace"]) for line in lines} == {("environment", "openfaas-fn")}
    texts = [line["text"] for line in lines]
    assert "Forking fprocess." in texts
    assert any(text.startswith("Wrote ") and "Bytes - Duration: " in text for text in texts)
    (instance,) = {line["instance"] for line in lines}
    assert client.system("GET", f"{path}&instance={instance}").body == answer.body
    assert client.system("GET", f"{path}&instance=another").body == b""
    assert client.system("GET", f"{path}&since=2100-01-01T00:00:00Z").body == b""
    assert client.system("GET", f"{path}&since=soon").status == 422
    assert client.system("GET", "logs?name=nobody").status == 404


def test_09_a_followed_log_goes_on_with_new_lines_of_new_calls(client: Client) -> None:
    since = datetime.now().astimezone().isoformat().replace("+", "%2B")
    url = f"{client.stack.url}/system/logs?name=environment&follow=1&since={since}"
    connection, path = web.connect(url)
    connection.request("GET", path, headers=web.basic(client.stack.password))
    client.call("environment")
    response = connection.getresponse()
    try:
        assert json.loads(response.readline())["text"] == "Forking fprocess."
    finally:
        response.close()
        connection.close()
    client.remove("environment")


def test_10_replicas_are_the_minimum_at_once_and_soon_really_there(client: Client) -> None:
    labels = {"com.openfaas.scale.min": "2", "com.openfaas.scale.max": "3"}
    client.deploy("minimum", envProcess="env", labels=labels)
    assert client.status("minimum")["replicas"] == 2
    wait_until(lambda: client.status("minimum")["availableReplicas"] == 2, "both serve")
    pids = {i["pid"] for i in client.stack.instances("minimum")}
    assert len(pids) == 2
    client.remove("minimum")


def test_11_scaled_to_zero_it_reads_zero_at_once_and_the_next_call_is_answered(
    client: Client,
) -> None:
    client.deploy("to-zero", envProcess="env", labels={"com.openfaas.scale.min": "1"})
    wait_until(lambda: client.status("to-zero")["availableReplicas"] == 1, "it serves")
    client.scale("to-zero", 0)
    assert client.status("to-zero")["replicas"] == 0
    wait_until(lambda: not client.stack.instances("to-zero"), "it is gone")
    assert client.call("to-zero").status == 200
    client.remove("to-zero")


def calls_per_second(client: Client, name: str, rate: float, ended: threading.Event) -> None:
    while not ended.wait(1 / rate):
        assert client.call(name).status == 200


def test_12_ten_calls_per_second_make_two_of_one_unless_scaling_is_ruled_out(
    client: Client,
) -> None:
    bounds = {"scaled": ("1", "2"), "fixed": ("1", "1")}
    for name, (least, most) in bounds.items():
        labels = {"com.openfaas.scale.min": least, "com.openfaas.scale.max": most}
        client.deploy(name, envProcess="cat", labels=labels)
    ended = threading.Event()
    callers = [
        threading.Thread(target=calls_per_second, args=(client, name, 10.0, ended))
        for name in bounds
    ]
    for caller in callers:
        caller.start()
    try:
        wait_until(lambda: client.status("scaled")["replicas"] == 2, "there are two", 20)
        wait_until(lambda: client.status("scaled")["availableReplicas"] == 2, "both serve", 10)
        assert client.status("fixed")["replicas"] == 1
    finally:
        ended.set()
        for caller in callers:
            caller.join()
    for name in bounds:
        client.remove(name)


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_13_secrets_are_files_in_the_functions_view(client: Client, namespace: str) -> None:
    raw = bytes(range(256))
    text = {"name": "text", "namespace": namespace, "value": "this-is-the-secret-value"}
    binary = {
        "name": "binary",
        "namespace": namespace,
        "value": raw.decode(errors="replace"),
        "rawValue": base64.b64encode(raw).decode(),
    }
    missing = {"service": "reader", "namespace": namespace, "image": ALPINE, "envProcess": "env"}
    refused = client.system("POST", "functions", {**missing, "secrets": ["text"]})
    assert (refused.status, b"unable to find secret: text" in refused.body) == (400, True)
    for secret in (text, binary):
        assert client.system("POST", "secrets", secret).status in (201, 202)
        assert client.system("POST", "secrets", secret).status == 409
    listed = client.system("GET", f"secrets?namespace={namespace}").json()
    assert listed == [{"name": n, "namespace": namespace} for n in ("binary", "text")]

    for name in ("text", "binary"):
        program = f"cat /var/openfaas/secrets/{name}"
        client.deploy(f"reader-{name}", namespace, envProcess=program, secrets=[name])
    assert client.call(f"reader-text.{namespace}").body == b"this-is-the-secret-value"
    assert client.call(f"reader-binary.{namespace}").body == raw
    assert client.system("PUT", "secrets", {**text, "value": "changed"}).status in (200, 202)
    assert client.call(f"reader-text.{namespace}").body == b"changed"

    for name in ("text", "binary"):
        client.remove(f"reader-{name}", namespace)
        gone = {"name": name, "namespace": namespace}
        assert client.system("DELETE", "secrets", gone).status in (200, 202)
        assert client.system("DELETE", "secrets", gone).status == 404
    assert client.system("GET", f"secrets?namespace={namespace}").json() == []


def test_14_the_wire_requests_of_faas_clis_verbs(client: Client) -> None:
    url = client.stack.url
    assert web.call("GET", f"{url}/system/functions", None, web.bearer("")).status == 401
    assert client.system("GET", "functions").status == 200  # login
    assert client.system("GET", "info").status == 200  # version
    assert web.call("GET", f"{url}/healthz").status == 200  # ready
    body = {
        "service": "fn",
        "image": ALPINE,
        "namespace": "",
        "envProcess": "cat",
        "constraints": None,
        "secrets": None,
        "labels": {},
        "annotations": {},
        "envVars": {},
        "readOnlyRootFilesystem": False,
    }
    statuses = [client.system(verb, "functions", body).status for verb in ("PUT", "POST", "PUT")]
    assert statuses == [404, 202, 202]  # deploy, and deploy again
    invoked = web.call("POST", f"{url}/function/fn", b"hello", {"Content-Type": "text/plain"})
    assert (invoked.status, invoked.body) == (200, b"hello")
    (listed,) = client.system("GET", "functions?namespace=").json()  # list
    assert (listed["name"], listed["invocationCount"]) == ("fn", 1)
    assert client.status("fn")["envProcess"] == "cat"  # describe
    assert client.system("GET", "logs?follow=false&name=fn&tail=-1").status == 200
    secret = {"name": "s", "value": "1", "rawValue": base64.b64encode(b"1").decode()}
    for verb, status in (("POST", 201), ("PUT", 202), ("DELETE", 202)):
        assert client.system(verb, "secrets", secret).status == status
    made = {"name": "made", "annotations": {"openfaas": "1"}, "labels": {}}
    assert client.system("POST", "namespace/", made).status == 201
    assert client.system("GET", "namespace/made").json()["annotations"] == {"openfaas": "1"}
    assert "made" in client.system("GET", "namespaces").json()
    assert client.system("PUT", "namespace/made", made).status == 202
    assert client.system("DELETE", "namespace/made", made).status == 202
    gone = {"functionName": "fn", "namespace": ""}
    statuses = [client.system("DELETE", "functions", gone).status for _ in range(2)]
    assert statuses == [202, 404]  # remove, and remove again


def test_15_the_platforms_own_errors_are_told_from_a_functions(client: Client) -> None:
    client.deploy("fails", envProcess="false")
    client.deploy("slow", envProcess="sleep 20")
    failed, unknown = client.call("fails"), client.call("nobody")
    assert (failed.status, unknown.status) == (500, 404)
    assert unknown.headers["x-openfaas-internal"] == "gateway"
    late = client.call("slow", headers={"X-Timeout": "300ms"})
    assert late.status == 408
    for name in ("fails", "slow"):
        client.remove(name)


def test_16_hop_by_hop_headers_stop_at_the_gateway_and_forwarded_ones_are_added(
    client: Client,
) -> None:
    client.deploy("headers", envProcess="env")
    connection = http.client.HTTPConnection("127.0.0.1", client.stack.port, timeout=20)
    sent = {"Connection": "close, X-Inner", "X-Inner": "1", "TE": "trailers", "X-Kept": "2"}
    connection.request("POST", "/function/headers", b"", sent | {"Host": "faas.example:8080"})
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    found = dict(line.split("=", 1) for line in lines if line.startswith("Http_"))
    assert found["Http_X_Kept"] == "2"
    assert not {"Http_X_Inner", "Http_Te", "Http_Transfer_Encoding"} & {*found}
    assert found["Http_X_Forwarded_Host"] == "faas.example:8080"
    assert found["Http_X_Forwarded_For"] == "127.0.0.1"
    client.remove("headers")


def test_17_no_secret_is_in_a_file_of_the_node(client: Client) -> None:
    files = [path for path in client.stack.state.parent.rglob("*") if path.is_file()]
    assert any(path.suffix == ".ndjson" for path in files)
    found = [path for path in files if b"this-is-the-secret-value" in path.read_bytes()]
    assert found == []
