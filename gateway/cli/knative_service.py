"""A Knative Service (serving.knative.dev/v1) as a function.

What has no meaning here is refused by name, with what to do instead: a Service that is deployed
runs as its manifest says, or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping

from stoker.gateway.cli.knative_container import read_container, read_volumes
from stoker.gateway.cli.stack import StackFunction
from stoker.gateway.cli.yaml_fields import Field
from stoker.placement.spec_kpa import KNATIVE, KPA_CLASS
from stoker.placement.spec_scaling import CONCURRENCY_MAXIMUM, CONTAINER_KEY
from stoker.placement.timeouts import IDLE_KEY, REQUEST_KEY, RESPONSE_START_KEY

API_VERSION = "serving.knative.dev/v1"
TIMEOUT_SECONDS_DEFAULT = 300
TIMEOUT_SECONDS_MAXIMUM = 600
# The field, the annotation that it becomes, its range, and what Knative takes it for if absent.
LIMITS = (
    ("containerConcurrency", CONTAINER_KEY, 0, CONCURRENCY_MAXIMUM, "0"),
    ("timeoutSeconds", REQUEST_KEY, 1, TIMEOUT_SECONDS_MAXIMUM, str(TIMEOUT_SECONDS_DEFAULT)),
    ("responseStartTimeoutSeconds", RESPONSE_START_KEY, 0, TIMEOUT_SECONDS_MAXIMUM, None),
    ("idleTimeoutSeconds", IDLE_KEY, 0, TIMEOUT_SECONDS_MAXIMUM, None),
)
_POD_KEYS = ("containers", "volumes", "enableServiceLinks", *(name for name, *_ in LIMITS))
_POD_REFUSED = {
    "initContainers": "Do at import what has to be done before the first request.",
    "serviceAccountName": "Give credentials as secrets.",
    "imagePullSecrets": "Nothing pulls images here; build the function with `stoker deploy`.",
    "nodeSelector": "Write stoker/devices for GPUs.",
    "affinity": "Remove it; placement looks for the node with the fastest start.",
    "tolerations": "Remove it; placement looks for the node with the fastest start.",
    "runtimeClassName": "Remove it; every function runs in Stoker's sandbox.",
}


def from_service(document: Field) -> StackFunction:
    """The function that a Service describes; BadSpec naming what is unknown or not supported."""
    top = document.fields(("apiVersion", "kind", "metadata", "spec", "status"))
    document.need(top, "apiVersion").only(API_VERSION)
    document.need(top, "kind").only("Service", remedy="A Service makes its route by itself.")
    _must_be_empty(top, "status")
    metadata = _metadata(document.need(top, "metadata"))
    spec = document.need(top, "spec")
    parts = spec.fields(("template", "traffic"))
    if "traffic" in parts:
        _check_traffic(parts["traffic"])
    template = spec.need(parts, "template")
    inner = template.fields(("metadata", "spec"))
    labels, annotations = _template_metadata(inner.get("metadata"))
    pod = template.need(inner, "spec")
    fields = pod.fields(_POD_KEYS, _POD_REFUSED)
    if "enableServiceLinks" in fields and fields["enableServiceLinks"].flag():
        fields["enableServiceLinks"].refuse("false")
    containers = pod.need(fields, "containers").items()
    if len(containers) != 1:
        fields["containers"].wrong(f"Expected one container, found {len(containers)}")
    container = read_container(containers[0], read_volumes(fields.get("volumes")))
    return StackFunction(
        name=metadata["name"].text(),
        namespace=metadata["namespace"].text() if "namespace" in metadata else "",
        lang="",
        handler=None,
        template=None,
        labels=_texts(metadata, "labels") | labels,
        annotations=with_limits(_texts(metadata, "annotations") | annotations, fields),
        image=container.image,
        environment=container.environment,
        limits=container.limits,
        requests=container.requests,
        secrets=container.secrets,
        read_only_root_filesystem=container.read_only,
    )


def with_limits(annotations: Mapping[str, str], fields: Mapping[str, Field]) -> dict[str, str]:
    """The annotations, and as such what Knative says in fields of their own, with its defaults."""
    made = {KNATIVE + "class": KPA_CLASS, **annotations}
    for name, key, least, most, default in LIMITS:
        field = fields.get(name)
        if field is None:
            if default is not None:
                made.setdefault(key, default)
            continue
        if key in annotations:
            field.wrong(f"Expected {field.where} or the annotation {key}, found both")
        made[key] = str(field.whole(least, most))
    if REQUEST_KEY in annotations:
        return made
    seconds = int(made[REQUEST_KEY])
    start = made.setdefault(RESPONSE_START_KEY, str(min(TIMEOUT_SECONDS_DEFAULT, seconds)))
    stated = fields.get("responseStartTimeoutSeconds")
    if stated is not None and int(start) > seconds:
        stated.refuse(f"at most the {seconds} s of timeoutSeconds")
    return made


def _metadata(field: Field) -> dict[str, Field]:
    known = ("name", "namespace", "labels", "annotations", "creationTimestamp")
    fields = field.fields(known)
    _must_be_empty(fields, "creationTimestamp")
    field.need(fields, "name")
    for key, place in _entries(fields.get("annotations")).items():
        if key.startswith(KNATIVE):
            place.wrong(
                f"Expected {key} in spec.template.metadata.annotations, found it at {place.where}",
                "Move it there: it is about the revision.",
            )
    return fields


def _template_metadata(field: Field | None) -> tuple[dict[str, str], dict[str, str]]:
    """Labels and annotations."""
    if field is None or field.is_empty:
        return {}, {}
    refused = {"name": "Remove it: revisions are numbered by their deployment."}
    fields = field.fields(("labels", "annotations", "creationTimestamp"), refused)
    _must_be_empty(fields, "creationTimestamp")
    return _texts(fields, "labels"), _texts(fields, "annotations")


def _check_traffic(field: Field) -> None:
    """All of it must go to the latest revision, for there is no other."""
    known = ("latestRevision", "percent", "tag", "revisionName")
    for target in field.items():
        fields = target.fields(known)
        latest = "latestRevision" not in fields or fields["latestRevision"].flag()
        whole = "percent" not in fields or fields["percent"].whole(0, 100) == 100
        if not latest or not whole or {"tag", "revisionName"} & fields.keys():
            target.wrong(
                f"Traffic among revisions and tags are not supported, found them at {target.where}",
                "Deploy the other revision as a function with a name of its own.",
            )


def _must_be_empty(fields: Mapping[str, Field], key: str) -> None:
    """It is what a server has added."""
    if key in fields and not fields[key].is_empty:
        fields[key].wrong(f"Expected a Service to be made, found {fields[key].where}", "Remove it.")


def _entries(field: Field | None) -> dict[str, Field]:
    return {} if field is None or field.is_empty else field.fields()


def _texts(fields: Mapping[str, Field], key: str) -> dict[str, str]:
    return fields[key].texts() if key in fields else {}
