"""Namespaces and secrets over the wire, as faas-cli asks for them."""

from __future__ import annotations

import base64
import subprocess

import pytest

from harness import web
from harness.gateway import Bench
from stoker.placement.records import FunctionRecord, ImageRecord, decode, encode
from stoker.placement.secrets import SECRET_BYTES_MAXIMUM, Seal, SecretRecord, path_of

CANARY = "canary-5f1c"


def value(bench: Bench, namespace: str, name: str) -> bytes:
    entry = bench.store.get(path_of(namespace, name))
    assert entry is not None
    return Seal(bench.token).open(decode(SecretRecord, entry.value))


def put_image(bench: Bench, name: str) -> None:
    bench.store.put(ImageRecord.path_of(name), encode(ImageRecord(name, "0" * 64)))


@pytest.fixture(scope="module", autouse=True)
def image(running: Bench) -> None:
    put_image(running, "any:latest")


def deployment(name: str, **fields: object) -> dict[str, object]:
    return {"service": name, "image": "any:latest", **fields}


def test_a_namespace_is_created_described_updated_and_deleted(bench: Bench) -> None:
    made = {"name": "dev", "annotations": {"openfaas": "1"}}
    assert bench.system("POST", "/system/namespace/", made).status == 201
    assert bench.system("POST", "/system/namespace/", made).status == 409
    told = bench.system("GET", "/system/namespace/dev").json()
    assert (told["name"], told["labels"], told["annotations"]) == ("dev", {}, {"openfaas": "1"})
    assert {"dev", "openfaas-fn"} <= {*bench.system("GET", "/system/namespaces").json()}
    changed = {"name": "dev", "labels": {"a": "b"}}
    assert bench.system("PUT", "/system/namespace/dev", changed).status == 202
    again = bench.system("GET", "/system/namespace/dev").json()
    assert again == {**told, "labels": {"a": "b"}, "annotations": {}}
    assert bench.system("DELETE", "/system/namespace/dev").status == 202
    for method, body in (("GET", None), ("PUT", changed), ("DELETE", None)):
        assert bench.system(method, "/system/namespace/dev", body).status == 404
    assert "dev" not in bench.system("GET", "/system/namespaces").json()


def test_the_default_namespace_is_always_there(bench: Bench) -> None:
    assert bench.system("GET", "/system/namespace/openfaas-fn").json()["name"] == "openfaas-fn"
    assert bench.system("POST", "/system/namespace/", {"name": "openfaas-fn"}).status == 409
    assert bench.system("DELETE", "/system/namespace/openfaas-fn").status == 409
    assert "openfaas-fn" in bench.system("GET", "/system/namespaces").json()


def test_bad_names_of_namespaces_are_refused(bench: Bench) -> None:
    for name in ("", "Big", "a/b", "..", "x" * 64, None, 7):
        assert bench.system("POST", "/system/namespace/", {"name": name}).status == 400
    huge = {"name": "huge", "labels": {"a": "x" * 70_000}}
    assert bench.system("POST", "/system/namespace/", huge).status == 400


def test_nothing_is_deployed_into_a_namespace_that_does_not_exist(bench: Bench) -> None:
    refused = bench.system("POST", "/system/functions", deployment("lost", namespace="nowhere"))
    assert refused.status == 400
    assert "none called 'nowhere'" in refused.json()["error"]["cause"]
    secret = {"name": "s", "namespace": "nowhere", "value": CANARY}
    assert bench.system("POST", "/system/secrets", secret).status == 400
    assert bench.store.list("/functions/nowhere") == bench.store.list("/secrets/nowhere") == ()


def test_a_namespace_in_use_is_not_deleted(bench: Bench) -> None:
    assert bench.system("POST", "/system/namespace/", {"name": "busy"}).status == 201
    body = deployment("resident", namespace="busy")
    assert bench.system("POST", "/system/functions", body).status == 202
    refused = bench.system("DELETE", "/system/namespace/busy")
    assert refused.status == 409
    assert "1 functions and 0 secrets" in refused.json()["error"]["cause"]
    assert bench.system("GET", "/system/namespace/busy").status == 200
    gone = {"functionName": "resident", "namespace": "busy"}
    assert bench.system("DELETE", "/system/functions", gone).status == 202
    assert bench.system("DELETE", "/system/namespace/busy").status == 202


def test_secrets_are_created_listed_updated_and_deleted(bench: Bench) -> None:
    secret = {"name": "key", "value": CANARY}
    assert bench.system("POST", "/system/secrets", secret).status == 201
    assert bench.system("POST", "/system/secrets", secret).status == 409
    listed = [{"name": "key", "namespace": "openfaas-fn"}]
    assert bench.system("GET", "/system/secrets").json() == listed
    assert value(bench, "openfaas-fn", "key") == CANARY.encode()
    assert bench.system("PUT", "/system/secrets", {"name": "key", "value": "new"}).status == 202
    assert value(bench, "openfaas-fn", "key") == b"new"
    assert bench.system("DELETE", "/system/secrets", {"name": "key"}).status == 202
    for method in ("PUT", "DELETE"):
        assert bench.system(method, "/system/secrets", secret).status == 404
    assert bench.system("GET", "/system/secrets").json() == []


def test_raw_bytes_win_over_what_was_left_of_them_as_a_text(bench: Bench) -> None:
    raw = bytes(range(256))
    secret = {
        "name": "binary",
        "value": raw.decode(errors="replace"),
        "rawValue": base64.b64encode(raw).decode(),
    }
    assert bench.system("POST", "/system/secrets", secret).status == 201
    assert value(bench, "openfaas-fn", "binary") == raw
    bench.system("DELETE", "/system/secrets", {"name": "binary"})


def test_the_namespace_of_a_secret_comes_from_the_body_or_else_the_query(bench: Bench) -> None:
    for name in ("one", "two"):
        assert bench.system("POST", "/system/namespace/", {"name": name}).status == 201
    secret = {"name": "k", "value": "in one"}
    assert bench.system("POST", "/system/secrets?namespace=one", secret).status == 201
    other = secret | {"namespace": "two", "value": "in two"}
    assert bench.system("POST", "/system/secrets?namespace=one", other).status == 201
    assert (value(bench, "one", "k"), value(bench, "two", "k")) == (b"in one", b"in two")
    assert bench.system("GET", "/system/secrets?namespace=two").json() == [
        {"name": "k", "namespace": "two"}
    ]
    refused = bench.system("DELETE", "/system/namespace/two")
    assert "0 functions and 1 secrets" in refused.json()["error"]["cause"]
    gone = {"name": "k"}
    assert bench.system("DELETE", "/system/secrets?namespace=one", gone).status == 202
    assert bench.system("DELETE", "/system/secrets", gone | {"namespace": "two"}).status == 202
    for name in ("one", "two"):
        assert bench.system("DELETE", f"/system/namespace/{name}").status == 202


def test_a_bad_secret_is_refused_and_its_value_is_told_nowhere(bench: Bench) -> None:
    bad: list[dict[str, object]] = [
        {"name": "a/b", "value": CANARY},
        {"name": "../up", "value": CANARY},
        {"name": "..", "value": CANARY},
        {"name": ".hidden", "value": CANARY},
        {"name": "k"},
        {"name": "k", "rawValue": CANARY + "!"},
        {"name": "k", "value": [CANARY]},
        {"name": "k", "rawValue": {CANARY: 1}},
        {"name": "k", "value": CANARY * SECRET_BYTES_MAXIMUM},
    ]
    for body in bad:
        for method in ("POST", "PUT"):
            answer = bench.system(method, "/system/secrets", body)
            assert answer.status in (400, 404, 413)
            assert CANARY.encode() not in answer.body
    cut = bench.system("POST", "/system/secrets", f'{{"name": "k", "value": "{CANARY}'.encode())
    assert cut.status == 400
    assert CANARY.encode() not in cut.body
    most = {"name": "most", "value": "x" * SECRET_BYTES_MAXIMUM}
    assert bench.system("POST", "/system/secrets", most).status == 201
    bench.system("DELETE", "/system/secrets", {"name": "most"})


def test_values_are_in_no_file_of_the_node(bench: Bench) -> None:
    secret = {"name": "canary", "value": CANARY}
    assert bench.system("POST", "/system/secrets", secret).status == 201
    found = subprocess.run(
        ["grep", "-rc", CANARY, str(bench.state)], capture_output=True, text=True, check=False
    )
    assert [line for line in found.stdout.splitlines() if not line.endswith(":0")] == []
    bench.system("DELETE", "/system/secrets", {"name": "canary"})


def test_a_function_names_secrets_that_exist(bench: Bench) -> None:
    body = deployment("keyed", secrets=["api-key"])
    refused = bench.call("POST", "/system/functions", body, web.basic(bench.password))
    assert refused.status == 400
    assert refused.body.startswith(b"unable to find secret: api-key")
    assert bench.system("POST", "/system/secrets", {"name": "api-key", "value": "1"}).status == 201
    assert bench.system("POST", "/system/functions", body).status == 202
    assert bench.system("GET", "/system/function/keyed").json()["secrets"] == ["api-key"]
    too_many = deployment("keyed", secrets=[f"s{n}" for n in range(65)])
    assert (
        "at most 64" in bench.system("PUT", "/system/functions", too_many).json()["error"]["cause"]
    )


def test_a_changed_secret_makes_new_instances_of_who_uses_it(bench: Bench) -> None:
    bench.system("POST", "/system/secrets", {"name": "shared", "value": "1"})
    user, other = bench.function(secrets=("shared",)), bench.function()
    old = bench.instance(user, bench.worker(lambda _: None).address)
    assert bench.system("PUT", "/system/secrets", {"name": "shared", "value": "2"}).status == 202
    entries = [bench.store.get(record.path) for record in (user, other)]
    changed, same = (decode(FunctionRecord, entry.value) for entry in entries if entry)
    assert same == other
    assert changed.generation == changed.generation_minimum == old.generation + 1
