"""Knative Services and func.yaml as functions: what is taken over, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from stoker.gateway.cli.func_yaml import from_func_yaml
from stoker.gateway.cli.manifests import Manifest, load_manifest
from stoker.gateway.cli.yaml_fields import read_documents
from stoker.placement.errors import BadSpec
from stoker.placement.spec import parse_deployment

FIXTURES = Path(__file__).resolve().parents[2] / "functions"
DEFAULTS = {
    "autoscaling.knative.dev/class": "kpa.autoscaling.knative.dev",
    "stoker/container-concurrency": "0",
    "stoker/timeout": "300",
    "stoker/response-start-timeout": "300",
}
FULL = """
apiVersion: serving.knative.dev/v1
kind: Service
metadata:
  name: chat
  namespace: team
  creationTimestamp: null
  labels: {tier: gold}
  annotations: {owner: me}
spec:
  template:
    metadata:
      labels: {app: chat}
      annotations:
        autoscaling.knative.dev/min-scale: "1"
        autoscaling.knative.dev/class: llm.stoker
        stoker/model: s3://models/chat
    spec:
      containerConcurrency: 4
      timeoutSeconds: 120
      responseStartTimeoutSeconds: 60
      idleTimeoutSeconds: 10
      enableServiceLinks: false
      containers:
        - name: user-container
          image: example.com/chat:1
          ports: [{name: http1, containerPort: 8080}]
          env: [{name: A, value: "1"}, {name: EMPTY}]
          resources: {limits: {cpu: "1", memory: 1Gi}, requests: {cpu: 500m}}
          readinessProbe: {tcpSocket: {port: 0}, successThreshold: 1}
          securityContext:
            readOnlyRootFilesystem: true
            allowPrivilegeEscalation: false
            capabilities: {drop: [ALL]}
            seccompProfile: {type: RuntimeDefault}
          volumeMounts: [{name: s, mountPath: /var/openfaas/secrets, readOnly: true}]
      volumes:
        - name: s
          projected: {sources: [{secret: {name: api-key}}, {secret: {name: other}}]}
  traffic: [{latestRevision: true, percent: 100}]
status: {}
"""


def load(tmp_path: Path, text: str) -> Manifest:
    path = tmp_path / "service.yaml"
    path.write_text(text)
    return load_manifest(path)


def service(**changes: Any) -> str:
    """A small Service, with values at paths such as spec__traffic."""
    made: dict[str, Any] = {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": "f"},
        "spec": {"template": {"spec": {"containers": [{"image": "f:1"}]}}},
    }
    for path, value in changes.items():
        place: Any = made
        *parents, last = path.split("__")
        for name in parents:
            place = place[int(name)] if name.isdigit() else place.setdefault(name, {})
        place[last] = value
    return yaml.safe_dump(made, sort_keys=False)


POD = "spec__template__spec"
CONTAINER = f"{POD}__containers__0"


def test_all_that_a_service_can_say_becomes_the_function(tmp_path: Path) -> None:
    (function,) = load(tmp_path, FULL).functions

    assert function.deployment() == {
        "service": "chat",
        "namespace": "team",
        "image": "example.com/chat:1",
        "envVars": {"A": "1", "EMPTY": ""},
        "labels": {"tier": "gold", "app": "chat"},
        "annotations": {
            "owner": "me",
            "autoscaling.knative.dev/min-scale": "1",
            "autoscaling.knative.dev/class": "llm.stoker",
            "stoker/model": "s3://models/chat",
            "stoker/container-concurrency": "4",
            "stoker/timeout": "120",
            "stoker/response-start-timeout": "60",
            "stoker/idle-timeout": "10",
        },
        "limits": {"cpu": "1", "memory": "1Gi"},
        "requests": {"cpu": "500m"},
        "secrets": ["api-key", "other"],
        "readOnlyRootFilesystem": True,
    }
    draft = parse_deployment(function.deployment())
    assert (draft.scaling.concurrency, draft.scaling.queue_per_instance) == (4, 40)
    assert draft.scaling.llm


def test_what_a_service_does_not_say_is_as_in_knative(tmp_path: Path) -> None:
    first, second = load(tmp_path, service() + "---\n" + service(metadata__name="g")).functions

    assert (first.name, second.name, first.needs_build) == ("f", "g", False)
    assert first.annotations == DEFAULTS
    draft = parse_deployment(first.deployment())
    assert draft.scaling.kpa is not None
    assert (draft.scaling.kpa.initial, draft.scaling.concurrency) == (1, 1000)
    (short,) = load(tmp_path, service(**{f"{POD}__timeoutSeconds": 60})).functions
    assert short.annotations["stoker/response-start-timeout"] == "60"


def test_a_longer_timeout_than_knatives_is_an_annotation(tmp_path: Path) -> None:
    annotations = {"stoker/timeout": "1h"}
    text = service(spec__template__metadata={"annotations": annotations})

    (function,) = load(tmp_path, text).functions

    assert function.annotations["stoker/timeout"] == "1h"
    assert "stoker/response-start-timeout" not in function.annotations


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("apiVersion", "serving.knative.dev/v1beta1", "apiVersion"),
        ("kind", "Route", "kind"),
        ("metadata__finalizers", ["x"], "metadata.finalizers"),
        ("metadata__annotations", {"autoscaling.knative.dev/min-scale": "1"}, "min-scale"),
        ("status", {"url": "http://x"}, "status"),
        ("spec__runLatest", {}, "spec.runLatest"),
        ("spec__traffic", [{"percent": 50}, {"percent": 50}], r"spec.traffic\[0\]"),
        ("spec__traffic", [{"percent": 100, "tag": "new"}], "tags"),
        ("spec__traffic", [{"revisionName": "f-1", "percent": 100}], "revisions"),
        ("spec__template__metadata", {"name": "f-1"}, "spec.template.metadata.name"),
        (f"{POD}__containers", [], "containers"),
        (f"{POD}__containers", [{"image": "a"}, {"image": "b"}], "one container, found 2"),
        (f"{POD}__serviceAccountName", "x", "serviceAccountName is not supported"),
        (f"{POD}__timeoutSeconds", 601, "from 1 to 600"),
        (f"{POD}__responseStartTimeoutSeconds", 400, "at most the 300 s"),
        (f"{POD}__containerConcurrency", -1, "containerConcurrency"),
        (f"{POD}__containerConcurency", 1, "containerConcurency"),
        (f"{POD}__volumes", [{"name": "d", "emptyDir": {}}], "emptyDir is not supported"),
        (f"{CONTAINER}__command", ["x"], "command is not supported"),
        (f"{CONTAINER}__env", [{"name": "PORT", "value": "1"}], "PORT"),
        (f"{CONTAINER}__env", [{"name": "A", "valueFrom": {}}], "valueFrom"),
        (f"{CONTAINER}__ports", [{"containerPort": 8012}], "another port"),
        (f"{CONTAINER}__ports", [{"containerPort": 80}, {"containerPort": 81}], "one port"),
        (f"{CONTAINER}__ports", [{"name": "h2c"}], "http1"),
        (f"{CONTAINER}__resources", {"limits": {"nvidia.com/gpu": "1"}}, "nvidia.com/gpu"),
        (f"{CONTAINER}__readinessProbe", {"httpGet": {"path": "/"}}, "httpGet"),
        (f"{CONTAINER}__securityContext", {"runAsUser": 0}, "runAsUser"),
        (f"{CONTAINER}__securityContext", {"allowPrivilegeEscalation": True}, "Escalation"),
        (f"{CONTAINER}__volumeMounts", [{"name": "x", "mountPath": "/data"}], "secrets"),
    ],
)
def test_what_a_service_says_that_cannot_be_is_named_with_its_line(
    tmp_path: Path, path: str, value: Any, said: str
) -> None:
    with pytest.raises(BadSpec, match=said) as caught:
        load(tmp_path, service(**{path: value}))

    assert "service.yaml:" in caught.value.cause


@pytest.mark.parametrize("port", [8008, 8012, 8013, 8022, 9090, 9091])
def test_knatives_own_ports_are_refused(tmp_path: Path, port: int) -> None:
    with pytest.raises(BadSpec, match="another port"):
        load(tmp_path, service(**{f"{CONTAINER}__ports": [{"containerPort": port}]}))


def test_a_func_yaml_is_its_folder_with_knatives_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUNC_GREETING", "Hello")

    manifest = load_manifest(FIXTURES / "func-http" / "func.yaml")

    (function,) = manifest.functions
    assert (function.name, function.image) == ("func-http", "func-http:latest")
    assert (function.handler, function.needs_build) == (FIXTURES / "func-http", True)
    assert function.environment == {"GREETING": "Hello"}
    assert function.limits == {"memory": "512Mi"}
    assert function.annotations == DEFAULTS | {
        "stoker/container-concurrency": "1",
        "autoscaling.knative.dev/min-scale": "0",
        "autoscaling.knative.dev/max-scale": "2",
        "autoscaling.knative.dev/metric": "concurrency",
    }
    assert [note.partition(" ")[0] for note in manifest.notes] == ["build.builder", "registry"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("runtime: go", "runtime"),
        ("domain: x.org", "domain is not supported"),
        ("template: http", "template"),
        ("invoke: grpc", "invoke"),
        ("build: {buildEnvs: [{name: A, value: b}]}", "build.buildEnvs is not supported"),
        ("run: {volumes: [{secret: s, path: /s}]}", "run.volumes is not supported"),
        ("run: {envs: [{value: '{{ secret:s }}'}]}", "envs"),
        ("run: {envs: [{name: A, value: '{{ secret:s:k }}'}]}", "env:NAME"),
        ("run: {envs: [{name: A, value: '{{ env:MISSING }}'}]}", "MISSING"),
        ("deploy: {subscriptions: [{source: default}]}", "deploy.subscriptions"),
        ("deploy: {healthEndpoints: {liveness: /live}}", "liveness"),
        ("deploy: {options: {scale: {minimum: 1}}}", "deploy.options.scale.minimum"),
        ("deploy: {options: {resources: {limits: {gpu: 1}}}}", "limits.gpu"),
    ],
)
def test_what_a_func_yaml_says_that_cannot_be_is_named_with_its_line(
    tmp_path: Path, lines: str, said: str
) -> None:
    head = "specVersion: 0.36.0\ncreated: 2026-01-01T00:00:00Z\nname: f\n"
    runtime = "" if lines.startswith("runtime") else "runtime: python\n"
    path = tmp_path / "func.yaml"
    path.write_text(f"{head}{runtime}{lines}\n")

    with pytest.raises(BadSpec, match=said) as caught:
        load_manifest(path)

    assert "func.yaml:" in caught.value.cause


def test_labels_and_places_of_a_func_yaml(tmp_path: Path) -> None:
    path = tmp_path / "func.yaml"
    path.write_text(
        "specVersion: 0.36.0\ncreated: 2026-01-01T00:00:00Z\nname: f\nruntime: python\n"
        "deploy:\n  namespace: team\n  image: example.com/f:1\n"
        "  labels: [{key: a, value: '{{ env:LABEL }}-x'}, {key: b}]\n"
        "  annotations: {own: '1'}\n  healthEndpoints: {readiness: /health/readiness}\n"
    )

    function, notes = from_func_yaml(read_documents(path)[0], path, {"LABEL": "y"})

    assert (function.namespace, function.image, notes) == ("team", "example.com/f:1", ())
    assert function.labels == {"a": "y-x", "b": ""}
    assert function.annotations["own"] == "1"


def test_a_stack_file_is_read_as_ever(tmp_path: Path) -> None:
    (function,) = load(tmp_path, "functions: {chat: {image: 'a:1'}}\n").functions

    assert (function.name, function.annotations) == ("chat", {})
    with pytest.raises(BadSpec, match="found: No such file"):
        load_manifest(tmp_path / "absent.yaml")
