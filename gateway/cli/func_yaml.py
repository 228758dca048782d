"""A func.yaml of Knative's `func` as a function: its folder is the code.

What only says how `func` makes an image changes nothing here, and is told in a note; what would
change how the function runs and cannot be done is refused by name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from stoker.gateway.cli.knative_service import with_limits
from stoker.gateway.cli.stack import StackFunction
from stoker.gateway.cli.yaml_fields import Field
from stoker.placement.spec_kpa import KNATIVE

LANGUAGE = "python3-stoker"
HEALTH_PATHS = {"liveness": "/health/liveness", "readiness": "/health/readiness"}
_KEYS = (
    *("specVersion", "created", "name", "runtime", "registry", "image", "namespace", "invoke"),
    *("build", "run", "deploy"),
)
_IMAGE_KEYS = ("builder", "builderImages", "buildpacks", "remoteStorageClass", "pvcSize", "git")
_IMAGE_REFUSED = {"buildEnvs": "Write run.envs; nothing is built with them."}
_RUN_REFUSED = {
    "volumes": "Read data from object storage, and secrets through a Knative Service.",
    "startTimeout": "Remove it: a start may take 600 s.",
    "podSecurityContext": "Remove it: every function runs in Stoker's sandbox.",
}
_DEPLOY_REFUSED = {
    "serviceAccountName": "Give credentials as secrets.",
    "subscriptions": "Let the broker or the event source call the function's URL.",
}
_TEMPLATE = re.compile(r"\{\{\s*(.*?)\s*\}\}")
_LOCAL = re.compile(r"env\s*:\s*([-._a-zA-Z][-._a-zA-Z0-9]*)")


def from_func_yaml(
    document: Field, path: Path, variables: Mapping[str, str] | None = None
) -> tuple[StackFunction, tuple[str, ...]]:
    """The function, and notes on what changes nothing here; BadSpec for what is unknown or cannot
    be done. `variables` are what `{{ env:NAME }}` means, those of this process by default.
    """
    local = os.environ if variables is None else variables
    remedy = "Functions are at name.namespace.domain, with the gateway's domain."
    top = document.fields(_KEYS, {"domain": remedy})
    for required in ("specVersion", "created"):
        document.need(top, required).text()
    name = document.need(top, "name").text()
    document.need(top, "runtime").only("python", remedy="Deploy another language as an fprocess.")
    if "invoke" in top:
        top["invoke"].only("http", "cloudevent")
    build = _within(top, "build", _IMAGE_KEYS, _IMAGE_REFUSED)
    run = _within(top, "run", ("envs",), _RUN_REFUSED)
    deploy = _within(
        top,
        "deploy",
        ("namespace", "image", "annotations", "labels", "healthEndpoints", "options"),
        _DEPLOY_REFUSED,
    )
    _check_health(deploy)
    options = _within(deploy, "options", ("scale", "resources"))
    resources = _within(options, "resources", ("requests", "limits"))
    limits = _within(resources, "limits", ("cpu", "memory", "concurrency"))
    requests = _within(resources, "requests", ("cpu", "memory"))
    hard = {"containerConcurrency": limits.pop("concurrency")} if "concurrency" in limits else {}
    annotations = deploy["annotations"].texts() if "annotations" in deploy else {}
    function = StackFunction(
        name=name,
        namespace=_first(top, deploy, "namespace"),
        lang=LANGUAGE,
        image=_first(top, deploy, "image") or f"{name}:latest",
        handler=path.resolve().parent,
        template=None,
        environment=_environment(run.get("envs"), local),
        labels=_labels(deploy.get("labels"), local),
        annotations=with_limits(annotations | _scale(options), hard),
        limits={key: field.text() for key, field in limits.items()},
        requests={key: field.text() for key, field in requests.items()},
    )
    told = [*(build[key] for key in build), *(top[key] for key in ("registry",) if key in top)]
    return function, tuple(f"{field.where} changes nothing: no image is made." for field in told)


def _within(
    fields: Mapping[str, Field],
    key: str,
    known: tuple[str, ...],
    refused: Mapping[str, str] | None = None,
) -> dict[str, Field]:
    """What stands at `key`, nothing if there is nothing."""
    if key not in fields or fields[key].is_empty:
        return {}
    inner = fields[key].fields((*known, *(refused or ())))
    for name, remedy in (refused or {}).items():
        if name in inner and not inner[name].is_empty:
            inner[name].wrong(f"{inner[name].where} is not supported", remedy)
    return {name: field for name, field in inner.items() if not field.is_empty}


def _first(top: Mapping[str, Field], deploy: Mapping[str, Field], key: str) -> str:
    """`func` writes below `deploy` where it did what the key above asks for."""
    found = next((fields[key] for fields in (top, deploy) if key in fields), None)
    return "" if found is None or found.is_empty else found.text()


def _check_health(deploy: Mapping[str, Field]) -> None:
    for key, field in _within(deploy, "healthEndpoints", tuple(HEALTH_PATHS)).items():
        field.only(HEALTH_PATHS[key], remedy="The function itself answers there.")


def _scale(options: Mapping[str, Field]) -> dict[str, str]:
    scale = _within(options, "scale", ("min", "max", "metric", "target", "utilization"))
    keys = {
        "min": "min-scale",
        "max": "max-scale",
        "metric": "metric",
        "target": "target",
        "utilization": "target-utilization-percentage",
    }
    return {KNATIVE + keys[key]: field.text() for key, field in scale.items()}


def _environment(field: Field | None, variables: Mapping[str, str]) -> dict[str, str]:
    made = {}
    for entry in field.items() if field else ():
        fields = entry.fields(("name", "value"))
        remedy = "Name each variable with name and value."
        if "name" not in fields:
            entry.wrong(
                f"Variables of a whole secret or map at {entry.where} are not supported", remedy
            )
        value = fields.get("value")
        made[fields["name"].text()] = "" if value is None else _filled(value, variables)
    return made


def _labels(field: Field | None, variables: Mapping[str, str]) -> dict[str, str]:
    made = {}
    for entry in field.items() if field else ():
        fields = entry.fields(("key", "value"))
        value = fields.get("value")
        made[entry.need(fields, "key").text()] = "" if value is None else _filled(value, variables)
    return made


def _filled(field: Field, variables: Mapping[str, str]) -> str:
    """The value, `{{ env:NAME }}` in it replaced by the local variable."""

    def value(match: re.Match[str]) -> str:
        local = _LOCAL.fullmatch(match[1])
        if local is None:
            field.refuse("a value or {{ env:NAME }}", "Mount secrets through a Knative Service.")
        if local[1] not in variables:
            field.wrong(f"Expected the local variable {local[1]} for {field.where}, found none")
        return variables[local[1]]

    return _TEMPLATE.sub(value, field.text())
