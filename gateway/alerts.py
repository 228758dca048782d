"""Alertmanager's word on how busy functions are: POST /system/alert.

A firing alert asks for more instances, `com.openfaas.scale.factor` percent of the maximum at a
time; a resolved one for the minimum, or one. A factor of 0 rules both out, and so does a minimum
that is the maximum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stoker.placement.errors import BadRequest
from stoker.placement.names import split_function_name
from stoker.placement.records import FunctionRecord
from stoker.placement.spec_scaling import step_percentage

ALERTS_MAXIMUM = 1000


@dataclass(frozen=True, slots=True)
class Alert:
    """What is said of the function with this key."""

    function: str
    firing: bool


def alerts_of(body: Mapping[str, Any]) -> list[Alert]:
    """The alerts of a webhook; BadRequest if it is none."""
    alerts = body.get("alerts")
    if not isinstance(alerts, list) or len(alerts) > ALERTS_MAXIMUM:
        raise BadRequest(
            f"Expected a list of at most {ALERTS_MAXIMUM} alerts, found none.",
            "Send what Alertmanager sends to a webhook.",
        )
    return [_alert(alert) for alert in alerts]


def replicas_after(function: FunctionRecord, replicas: int, *, firing: bool) -> int | None:
    """How many instances there should be; None: as many as there are."""
    scaling = function.scaling
    percentage = step_percentage(function.labels, function.annotations)
    if percentage == 0 or scaling.minimum == scaling.maximum:
        return None
    if not firing:
        return max(1, scaling.minimum)  # the last one goes when it is no longer worth keeping
    step = math.ceil(scaling.maximum * percentage / 100)
    return min(replicas + step, scaling.maximum)


def _alert(alert: object) -> Alert:
    if isinstance(alert, dict) and isinstance(labels := alert.get("labels"), dict):
        name, status = labels.get("function_name"), alert.get("status")
        if isinstance(name, str) and status in ("firing", "resolved"):
            return Alert(".".join(split_function_name(name)), status == "firing")
    raise BadRequest(
        "Expected alerts with a status (firing or resolved) and labels.function_name, found "
        "another one.",
        "Let the rule keep the label function_name.",
    )
