"""The function spec: from a FunctionDeployment to a FunctionRecord, and back to its status."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, get_args

from stoker.placement.errors import BadSpec
from stoker.placement.function_code import HANDLER_KEY, HANDLER_KINDS, stated_kind
from stoker.placement.names import (
    DEFAULT_NAMESPACE,
    valid_function_name,
    valid_namespace,
    valid_secret_name,
)
from stoker.placement.records import (
    CheckpointRef,
    DeviceNeed,
    FunctionRecord,
    Scaling,
    Task,
    encode,
)
from stoker.placement.request_limits import limits_of
from stoker.placement.resources import parse_limits
from stoker.placement.spec_devices import devices_of
from stoker.placement.spec_fields import (
    PREFIX,
    checkpoint_uri,
    list_field,
    refuse,
    text_field,
    texts_field,
    whole_number,
)
from stoker.placement.spec_probes import health_probe, ready_probe
from stoker.placement.spec_scaling import scaling_of
from stoker.placement.timeouts import Timeouts, timeouts_of

SUPPORTED_KEYS = (
    "model",
    "adapter",
    "task",
    "engine",
    "dtype",
    "max-context",
    "idle-ttl",
    "handler",
    "priority",
    "slo-ttft-ms",
    "devices",
    "auth",
    "requests-per-second",
    "concurrency-limit",
    "queue-limit",
    "timeout",
    "response-start-timeout",
    "idle-timeout",
    "container-concurrency",
)
LATER_KEYS = ("slo-tpot-ms", "host-pin", "trigger-s3")
ENGINES = ("transformers",)
DTYPES = ("auto", "float32", "bfloat16", "float16")
AUTHS = ("token",)

CONTEXT_TOKENS_MAXIMUM = 10_000_000
PRIORITY_MAXIMUM = 1000
SLO_MILLISECONDS_MAXIMUM = 3_600_000
SECRETS_MAXIMUM = 64
# A record must fit into one entry of the store with room for its growth.
RECORD_BYTES_MAXIMUM = 512 * 1024

_ENVIRONMENT_NAME = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]{0,255}")


@dataclass(frozen=True, slots=True)
class FunctionDraft:
    """A valid spec: a FunctionRecord less what must be looked up (checkpoint, code)."""

    name: str
    namespace: str
    image: str
    task: Task
    model_uri: str | None
    adapter_uri: str | None
    engine: str
    dtype: str
    max_context: int | None
    scaling: Scaling
    environment: Mapping[str, str]
    env_process: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    secrets: tuple[str, ...]
    constraints: tuple[str, ...]
    limits: Mapping[str, str] | None
    requests: Mapping[str, str] | None
    read_only_root_filesystem: bool
    priority: int
    slo_ttft_seconds: float | None
    devices: tuple[DeviceNeed, ...]
    timeouts: Timeouts | None


def parse_deployment(
    body: Mapping[str, Any], default_namespace: str = DEFAULT_NAMESPACE
) -> FunctionDraft:
    """The draft in a FunctionDeployment object; BadRequest or BadSpec, naming key and value."""
    labels = texts_field(body, "labels") or {}
    annotations = texts_field(body, "annotations") or {}
    _check_keys(labels, annotations)
    env_process = text_field(body, "envProcess")
    model_uri = checkpoint_uri(PREFIX + "model", annotations.get(PREFIX + "model"))
    task = _task(annotations, model_uri)
    _check_handler(annotations, env_process, task, model_uri)
    _choice(annotations, "auth", AUTHS, "token")
    limits_of(annotations)
    environment = texts_field(body, "envVars") or {}
    for name in environment:
        if not _ENVIRONMENT_NAME.fullmatch(name):
            refuse("envVars", "names of letters, digits, '_', '-' and '.'", name)
    read_only = body.get("readOnlyRootFilesystem") or False
    if not isinstance(read_only, bool):
        refuse("readOnlyRootFilesystem", "true or false", read_only)
    health_probe(annotations)
    ready_probe(annotations)
    image = text_field(body, "image")
    if not image:
        refuse("image", "the name of an image", body.get("image"))
    return FunctionDraft(
        name=valid_function_name(body.get("service")),
        namespace=valid_namespace(body.get("namespace") or default_namespace),
        image=image,
        task=task,
        model_uri=model_uri,
        adapter_uri=_adapter_uri(annotations, model_uri),
        engine=_choice(annotations, "engine", ENGINES, "transformers"),
        dtype=_choice(annotations, "dtype", DTYPES, "auto"),
        max_context=_whole(annotations, "max-context", 1, CONTEXT_TOKENS_MAXIMUM, "tokens"),
        scaling=scaling_of(labels, annotations, model_uri is not None),
        environment=environment,
        env_process=env_process,
        labels=labels,
        annotations=annotations,
        secrets=_secrets(body),
        constraints=list_field(body, "constraints"),
        limits=_limits(body),
        requests=texts_field(body, "requests"),
        read_only_root_filesystem=read_only,
        priority=_whole(annotations, "priority", 0, PRIORITY_MAXIMUM, "steps") or 0,
        slo_ttft_seconds=_slo_seconds(annotations),
        devices=devices_of(annotations, model_uri),
        timeouts=timeouts_of(annotations),
    )


def record_from_draft(
    draft: FunctionDraft,
    checkpoint: CheckpointRef | None,
    code_digest: str | None,
    created_at: float,
    generation: int,
    adapter: CheckpointRef | None = None,
) -> FunctionRecord:
    """The record of `draft` with what was looked up for it; BadSpec if something is missing."""
    for uri, found in ((draft.model_uri, checkpoint), (draft.adapter_uri, adapter)):
        if uri is not None and found is None:
            raise BadSpec(f"Expected a resolved checkpoint for {uri}, found none.")
    if draft.task == "custom" and code_digest is None:
        raise BadSpec(
            f"Expected code for the image {draft.image!r}, found none: "
            f"{draft.name} has the task custom, so it needs a handler.",
            "Push the handler first (`faas-cli up --remote-builder`), or set stoker/model.",
        )
    record = FunctionRecord(
        name=draft.name,
        namespace=draft.namespace,
        image=draft.image,
        task=draft.task,
        checkpoint=checkpoint,
        adapter=adapter,
        code_digest=code_digest,
        engine=draft.engine,
        dtype=draft.dtype,
        max_context=draft.max_context,
        scaling=draft.scaling,
        environment=draft.environment,
        env_process=draft.env_process,
        labels=draft.labels,
        annotations=draft.annotations,
        secrets=draft.secrets,
        constraints=draft.constraints,
        limits=draft.limits,
        requests=draft.requests,
        read_only_root_filesystem=draft.read_only_root_filesystem,
        created_at=created_at,
        generation=generation,
        priority=draft.priority,
        slo_ttft_seconds=draft.slo_ttft_seconds,
        devices=draft.devices,
        timeouts=draft.timeouts,
    )
    record_bytes = len(encode(record))
    if record_bytes > RECORD_BYTES_MAXIMUM:
        raise BadSpec(
            f"Expected a spec of at most {RECORD_BYTES_MAXIMUM} bytes, found {record_bytes}.",
            "Move large values out of the environment, labels and annotations.",
        )
    return record


def status_of(
    record: FunctionRecord, replicas: int, available: int, invocation_count: int
) -> dict[str, Any]:
    """The record as an OpenFaaS FunctionStatus object."""
    status: dict[str, Any] = {
        "name": record.name,
        "namespace": record.namespace,
        "image": record.image,
        "labels": {**record.labels, "faas_function": record.name},
        "annotations": dict(record.annotations),
        "replicas": replicas,
        "availableReplicas": available,
        "invocationCount": invocation_count,
        "createdAt": timestamp(record.created_at),
    }
    optional = {
        "envProcess": record.env_process,
        "envVars": dict(record.environment),
        "constraints": list(record.constraints),
        "secrets": list(record.secrets),
        "limits": dict(record.limits or {}),
        "requests": dict(record.requests or {}),
        "readOnlyRootFilesystem": record.read_only_root_filesystem,
    }
    # Clients compare what was not supplied with nothing, not with an empty object.
    return status | {key: value for key, value in optional.items() if value}


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339, in whole seconds of UTC."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _check_keys(labels: Mapping[str, str], annotations: Mapping[str, str]) -> None:
    for key in labels:
        if key.startswith(PREFIX):
            raise BadSpec(
                f"Expected {key} among the annotations, found it among the labels.",
                "Move it to the annotations.",
            )
    for key in annotations:
        if not key.startswith(PREFIX):
            continue
        name = key.removeprefix(PREFIX)
        if name in LATER_KEYS:
            raise BadSpec(
                f"The annotation {key} is not supported in this release of Stoker.",
                "Remove it; nothing would act on it.",
            )
        if name not in SUPPORTED_KEYS:
            nearest = difflib.get_close_matches(name, SUPPORTED_KEYS, n=1, cutoff=0.0)[0]
            raise BadSpec(
                f"The annotation {key} is unknown; the nearest known one is {PREFIX}{nearest}.",
                "Known are " + ", ".join(PREFIX + known for known in SUPPORTED_KEYS) + ".",
            )


def _check_handler(
    annotations: Mapping[str, str], env_process: str, task: Task, model_uri: str | None
) -> None:
    if HANDLER_KEY not in annotations:
        return
    kind = stated_kind(annotations)
    if kind is None:
        refuse(HANDLER_KEY, " or ".join(HANDLER_KINDS), annotations[HANDLER_KEY])
    if task != "custom":
        raise BadSpec(
            f"Expected {HANDLER_KEY} on a function with code, found it beside stoker/model.",
            "Remove one of the two, or set stoker/task to custom.",
        )
    if model_uri is not None and kind != "openfaas":
        raise BadSpec(
            f"Expected {HANDLER_KEY}: openfaas for code with a model, found {kind}.",
            "Write handle(event, context); context.model is the model.",
        )
    if kind == "process" and not env_process:
        raise BadSpec(
            f"Expected fprocess with {HANDLER_KEY}: process, found none.",
            "Set fprocess to the command that answers a request.",
        )


def _adapter_uri(annotations: Mapping[str, str], model_uri: str | None) -> str | None:
    uri = checkpoint_uri(PREFIX + "adapter", annotations.get(PREFIX + "adapter"))
    if uri is not None and model_uri is None:
        raise BadSpec(
            "Expected the annotation stoker/model beside stoker/adapter, found none.",
            "Set stoker/model to the model that the adapter was made for.",
        )
    return uri


def _task(annotations: Mapping[str, str], model_uri: str | None) -> Task:
    task = annotations.get(PREFIX + "task", "chat" if model_uri else "custom")
    if task not in get_args(Task):
        refuse(PREFIX + "task", " or ".join(get_args(Task)), task)
    if task != "custom" and model_uri is None:
        raise BadSpec(
            f"Expected the annotation stoker/model for the task {task}, found none.",
            "Set stoker/model to the checkpoint's s3:// or file:// URI.",
        )
    known: Task = task  # type: ignore[assignment]  # checked against the Literal above
    return known


def _secrets(body: Mapping[str, Any]) -> tuple[str, ...]:
    names = list_field(body, "secrets")
    if len(names) > SECRETS_MAXIMUM:
        refuse("secrets", f"at most {SECRETS_MAXIMUM} names", len(names))
    return tuple(valid_secret_name(name) for name in names)


def _limits(body: Mapping[str, Any]) -> dict[str, str] | None:
    limits = texts_field(body, "limits")
    parse_limits(limits)
    return limits


def _choice(
    annotations: Mapping[str, str], name: str, choices: tuple[str, ...], default: str
) -> str:
    value = annotations.get(PREFIX + name, default)
    if value not in choices:
        refuse(PREFIX + name, " or ".join(choices), value)
    return value


def _whole(
    annotations: Mapping[str, str], name: str, least: int, most: int, unit: str
) -> int | None:
    text = annotations.get(PREFIX + name)
    return None if text is None else whole_number(PREFIX + name, text, least, most, unit)


def _slo_seconds(annotations: Mapping[str, str]) -> float | None:
    found = _whole(annotations, "slo-ttft-ms", 1, SLO_MILLISECONDS_MAXIMUM, "milliseconds")
    return None if found is None else found / 1000.0
