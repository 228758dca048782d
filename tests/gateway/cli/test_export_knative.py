"""Exported Services: valid to the letter for Kubernetes and Knative, and deployable again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner, Result
from cloudcoil.models.knative_serving.serving import v1 as knative_serving

from harness.fake_gateway import PASSWORD, FakeGateway, serve
from stoker.deploy.main import main
from stoker.gateway.cli.export_knative import service_of
from stoker.gateway.cli.manifests import load_manifest
from stoker.placement.errors import BadSpec
from stoker.placement.spec import parse_deployment

FULL: dict[str, Any] = {
    "name": "chat",
    "namespace": "team",
    "image": "example.com/chat:1",
    "labels": {"tier": "gold", "com.openfaas.scale.max": "3", "faas_function": "chat"},
    "annotations": {
        "stoker/model": "s3://models/chat",
        "stoker/container-concurrency": "4",
        "stoker/timeout": "120",
        "stoker/response-start-timeout": "60",
        "stoker/idle-timeout": "10",
        "stoker/idle-ttl": "5m",
    },
    "envVars": {"A": "1", "B": "x: {y}"},
    "limits": {"memory": "1Gi", "cpu": "1500m"},
    "requests": {"memory": "512Mi"},
    "secrets": ["api-key"],
    "readOnlyRootFilesystem": True,
}
PLAIN: dict[str, Any] = {"name": "echo", "namespace": "openfaas-fn", "image": "echo:latest"}


def check_strictly(service: Mapping[str, Any]) -> None:
    """As kubectl with `--validate=strict`: the pod's part by Kubernetes' schema, the rest by
    Knative's, and no key that they do not have.
    """
    template = service["spec"]["template"]
    keys = ("containers", "volumes")
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "pod", **template["metadata"]},
        "spec": {
            **{key: template["spec"][key] for key in keys if key in template["spec"]},
        },
    }
    named = [{"name": "user-container", **each} for each in pod["spec"]["containers"]]
    pod["spec"]["containers"] = named
    kubernetes_validate.validate(pod, "1.37", strict=True)
    model = knative_serving.Service.model_validate(service)
    assert model.model_dump(by_alias=True, exclude_unset=True, mode="json") == service


@pytest.mark.parametrize("status", [FULL, PLAIN])
def test_an_exported_service_is_valid_to_the_letter(status: dict[str, Any]) -> None:
    service, notes = service_of(status)

    check_strictly(service)
    assert notes == []


def test_the_strict_check_finds_an_unknown_key() -> None:
    service, _ = service_of(PLAIN)
    service["spec"]["template"]["spec"]["containerConcurency"] = 1

    with pytest.raises((AssertionError, ValueError)):
        check_strictly(service)


def test_an_exported_service_deploys_as_what_it_was(tmp_path: Path) -> None:
    service, _ = service_of(FULL)
    path = tmp_path / "service.yaml"
    path.write_text(yaml.safe_dump(service))

    (function,) = load_manifest(path).functions

    again = function.deployment()
    for key in ("image", "envVars", "limits", "requests", "secrets", "readOnlyRootFilesystem"):
        assert again[key] == FULL[key]
    before = parse_deployment({**FULL, "service": "chat"})
    draft = parse_deployment(again)
    assert draft.model_uri == before.model_uri
    assert draft.timeouts == before.timeouts
    assert draft.scaling == before.scaling


def test_openfaas_scaling_is_said_in_knatives_words() -> None:
    labels = {
        "com.openfaas.scale.type": "rps",
        "com.openfaas.scale.target": "20",
        "com.openfaas.scale.min": "1",
        "com.openfaas.scale.zero-duration": "2h",
    }
    service, _ = service_of(PLAIN | {"labels": labels})

    annotations = service["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {
        "autoscaling.knative.dev/class": "kpa.autoscaling.knative.dev",
        "autoscaling.knative.dev/metric": "rps",
        "autoscaling.knative.dev/target": "20",
        "autoscaling.knative.dev/target-utilization-percentage": "90",
        "autoscaling.knative.dev/min-scale": "1",
        "autoscaling.knative.dev/max-scale": "4",
        "stoker/idle-ttl": "7200s",
    }
    assert "labels" not in service["metadata"]
    assert service["spec"]["template"]["spec"]["containerConcurrency"] == 16


@pytest.mark.parametrize(
    ("change", "said"),
    [({"name": "Chat_1"}, "small letters"), ({"envProcess": "cat"}, "fprocess")],
)
def test_what_knative_cannot_run_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadSpec, match=said):
        service_of(PLAIN | change)


def test_what_a_service_cannot_say_is_noted() -> None:
    _, notes = service_of(PLAIN | {"limits": {"pids": "5"}, "constraints": ["zone=a"]})

    assert notes == ["Knative has no limit of pids.", "the constraint 'zone=a' is left out."]


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with serve() as fake:
        yield fake


@pytest.fixture
def run(gateway: FakeGateway) -> Callable[..., Result]:
    def invoke(*arguments: str) -> Result:
        settings = {"STOKER_GATEWAY": gateway.url, "STOKER_PASSWORD": PASSWORD}
        return CliRunner().invoke(main, arguments, env=settings)

    return invoke


def test_services_are_deployed_and_exported_by_their_verbs(
    run: Callable[..., Result], gateway: FakeGateway, tmp_path: Path
) -> None:
    path = tmp_path / "service.yaml"
    path.write_text(yaml.safe_dump(service_of(FULL)[0]))

    deployed = run("deploy", "-f", str(path))
    exported = run("export", "knative", "chat", "-n", "team")

    assert deployed.exit_code == 0, deployed.output
    assert gateway.functions["chat"]["image"] == "example.com/chat:1"
    check_strictly(yaml.safe_load(exported.stdout))
    assert run("export", "knative", "nobody").exit_code == 1
