"""`stoker export knative`: a deployed function as a Knative Service."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import click
import yaml

from stoker.gateway.cli.knative_container import SECRETS_FOLDER
from stoker.gateway.cli.knative_service import API_VERSION, LIMITS, TIMEOUT_SECONDS_DEFAULT
from stoker.gateway.cli.options import (
    client_of,
    gateway_option,
    namespace_option,
    path_of,
    reports_errors,
    say,
)
from stoker.placement.errors import BadSpec
from stoker.placement.records import Scaling
from stoker.placement.spec_fields import PREFIX, duration_seconds
from stoker.placement.spec_kpa import KNATIVE, KPA_CLASS, OPENFAAS
from stoker.placement.spec_scaling import IDLE_KEYS, scaling_of

RETENTION_SECONDS_MAXIMUM = 3600
_SECRETS_VOLUME = "openfaas-secrets"
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


@click.group()
def export() -> None:
    """Write a deployed function for another platform."""


@export.command()
@click.argument("name")
@namespace_option
@gateway_option
@reports_errors
def knative(name: str, namespace: str, gateway: str | None) -> None:
    """Print the Knative Service of a function; it can be deployed again with `stoker deploy`."""
    path = path_of("/system/function", name, namespace=namespace)
    status = client_of(gateway).call("GET", path, missing=name)
    service, notes = service_of(status)
    for note in notes:
        say(f"note: {note}", err=True)
    click.echo(yaml.safe_dump(service, sort_keys=False), nl=False)


def service_of(status: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The Service of a FunctionStatus, and notes on what it cannot say; BadSpec if it cannot be."""
    name = status["name"]
    if not _NAME.fullmatch(name):
        raise BadSpec(
            f"Expected a name of small letters, digits and '-', found {name!r}.",
            "Kubernetes allows no other; deploy the function under such a name.",
        )
    if status.get("envProcess"):
        raise BadSpec(
            f"Expected a function that its own code serves, found {name} with an fprocess.",
            "Put the program and OpenFaaS' watchdog into an image of your own.",
        )
    labels = {k: v for k, v in (status.get("labels") or {}).items() if k != "faas_function"}
    stated = {k: v for k, v in labels.items() if k.startswith(KNATIVE)}
    annotations = stated | (status.get("annotations") or {})
    scaling = scaling_of(labels, annotations, PREFIX + "model" in annotations)
    pod, annotations = _limits(annotations, scaling.concurrency)
    annotations = _scaling(annotations, scaling)
    container, volumes = _container(status)
    metadata = {"name": name, "namespace": status.get("namespace")}
    kept = {k: v for k, v in labels.items() if not k.startswith((OPENFAAS, KNATIVE))}
    notes = [f"Knative has no limit of {key}." for key in _others(status.get("limits"))]
    notes += [f"the constraint {each!r} is left out." for each in status.get("constraints") or ()]
    return {
        "apiVersion": API_VERSION,
        "kind": "Service",
        "metadata": _present({**metadata, "labels": kept}),
        "spec": {
            "template": {
                "metadata": {"annotations": annotations},
                "spec": _present({**pod, "containers": [container], "volumes": volumes}),
            }
        },
    }, notes


def _limits(
    annotations: Mapping[str, str], concurrency: int
) -> tuple[dict[str, int], dict[str, str]]:
    """Knative's own fields, and the annotations that are left."""
    left, pod = dict(annotations), {"containerConcurrency": concurrency}
    longest = TIMEOUT_SECONDS_DEFAULT
    for field, key, _, most, _ in LIMITS:
        seconds = duration_seconds(left.get(key, ""))
        most = longest if field == "responseStartTimeoutSeconds" else most
        if seconds is None or seconds > most:
            continue  # what Knative does not allow stays with those who read annotations
        pod[field] = math.ceil(seconds)
        longest = pod[field] if field == "timeoutSeconds" else longest
        del left[key]
    return pod, left


def _scaling(annotations: Mapping[str, str], scaling: Scaling) -> dict[str, str]:
    """The annotations, in which Knative's keys alone say how it scales."""
    made = {
        key: value
        for key, value in annotations.items()
        if not key.startswith(OPENFAAS) and key not in IDLE_KEYS
    }
    if scaling.kpa is not None and KNATIVE + "class" not in made:
        utilization = 100 * scaling.kpa.utilization
        made[KNATIVE + "class"] = KPA_CLASS
        made[KNATIVE + "metric"] = scaling.kpa.metric
        made[KNATIVE + "target"] = f"{scaling.kpa.target:g}"
        made[KNATIVE + "target-utilization-percentage"] = f"{utilization:g}"
    for kebab, camel, value in (
        ("min-scale", "minScale", scaling.minimum),
        ("max-scale", "maxScale", scaling.maximum),
    ):
        if KNATIVE + camel not in made:
            made[KNATIVE + kebab] = str(value)
    if scaling.idle_seconds is not None:
        short = scaling.idle_seconds <= RETENTION_SECONDS_MAXIMUM
        key = KNATIVE + "scale-to-zero-pod-retention-period" if short else PREFIX + "idle-ttl"
        made[key] = f"{scaling.idle_seconds:g}s"
    return made


def _container(status: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The container, and the volumes that it mounts."""
    environment = status.get("envVars") or {}
    resources = {
        kind: {k: v for k, v in (status.get(kind) or {}).items() if k in ("cpu", "memory")}
        for kind in ("limits", "requests")
    }
    read_only = bool(status.get("readOnlyRootFilesystem"))
    container = {
        "image": status["image"],
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "resources": _present(resources),
        "securityContext": {"readOnlyRootFilesystem": True} if read_only else {},
    }
    secrets = status.get("secrets") or []
    if not secrets:
        return _present(container), []
    mount = {"name": _SECRETS_VOLUME, "mountPath": SECRETS_FOLDER, "readOnly": True}
    sources = [{"secret": {"name": secret}} for secret in secrets]
    volume = {"name": _SECRETS_VOLUME, "projected": {"sources": sources}}
    return _present({**container, "volumeMounts": [mount]}), [volume]


def _others(limits: Mapping[str, str] | None) -> list[str]:
    return [key for key in limits or {} if key not in ("cpu", "memory")]


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is empty; 0 is not."""
    return {key: value for key, value in fields.items() if value not in (None, "", {}, [])}
