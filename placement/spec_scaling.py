"""The scaling keys of a function spec.

They may stand among the labels or the annotations, `autoscaling.knative.dev/` keys in
kebab or camel case. A target of requests in flight is the limit of concurrency too; one that is
meant per second is none, and one that is meant as a share of a CPU (`com.openfaas.scale.type: cpu`,
`autoscaling.knative.dev/metric: cpu`, …) is kept but nothing acts on it. Two keys that mean the
same must say the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from stoker.placement.errors import BadSpec
from stoker.placement.records import Scaling
from stoker.placement.spec_fields import PREFIX, Stated, duration_seconds, refuse
from stoker.placement.spec_kpa import KNATIVE, OPENFAAS, calls_of, kpa_of, llm_of

INSTANCES_MAXIMUM = 1000
CODE_INSTANCES_DEFAULT = 4
MODEL_INSTANCES_DEFAULT = 1
CONCURRENCY_MAXIMUM = 1000
IDLE_SECONDS_MAXIMUM = 30 * 86_400.0
STEP_PERCENTAGE_DEFAULT = 20

_MINIMUM_KEYS = (OPENFAAS + "min", KNATIVE + "min-scale", KNATIVE + "minScale")
_MAXIMUM_KEYS = (OPENFAAS + "max", KNATIVE + "max-scale", KNATIVE + "maxScale")
# Knative's containerConcurrency, which has no annotation there.
CONTAINER_KEY = PREFIX + "container-concurrency"
QUEUE_PER_SLOT = 10
_FACTOR_KEYS = (OPENFAAS + "factor",)
IDLE_KEYS = (
    PREFIX + "idle-ttl",
    OPENFAAS + "zero-duration",
    KNATIVE + "scale-to-zero-pod-retention-period",
    KNATIVE + "scaleToZeroPodRetentionPeriod",
)


def scaling_of(
    labels: Mapping[str, str], annotations: Mapping[str, str], is_model: bool
) -> Scaling:
    """What the keys ask for; BadSpec for a value that is none, or two that contradict."""
    stated = Stated(labels, annotations)
    minimum = stated.whole(_MINIMUM_KEYS, 0, INSTANCES_MAXIMUM, "instances")
    maximum = stated.whole(_MAXIMUM_KEYS, 0, INSTANCES_MAXIMUM, "instances")
    if maximum == 0:
        if stated.key_of(_MAXIMUM_KEYS).startswith(OPENFAAS):
            refuse(OPENFAAS + "max", "at least 1 instance", "0")
        maximum = INSTANCES_MAXIMUM  # Knative's way of saying: no limit.
    if minimum is not None and maximum is not None and minimum > maximum:
        raise BadSpec(
            f"Expected a minimum of at most the maximum, found {minimum} > {maximum} "
            f"({stated.key_of(_MINIMUM_KEYS)} and {stated.key_of(_MAXIMUM_KEYS)}).",
            "Lower the minimum or raise the maximum.",
        )
    least = _least(stated, minimum or 0)
    default = MODEL_INSTANCES_DEFAULT if is_model else CODE_INSTANCES_DEFAULT
    most = maximum if maximum is not None else max(default, least)
    hard = stated.whole((CONTAINER_KEY,), 0, CONCURRENCY_MAXIMUM, "requests in flight")
    concurrency = _concurrency(stated) if hard is None else hard or CONCURRENCY_MAXIMUM
    step = step_percentage(labels, annotations)
    kpa = kpa_of(stated, concurrency, is_chosen=hard is not None)
    if kpa is None and step and least < most and not is_model:
        kpa = calls_of(stated)
    return Scaling(
        minimum=least,
        maximum=most,
        concurrency=concurrency,
        idle_seconds=_idle_seconds(stated),
        kpa=kpa,
        llm=llm_of(stated),
        queue_per_instance=QUEUE_PER_SLOT * hard if hard else None,
    )


def step_percentage(labels: Mapping[str, str], annotations: Mapping[str, str]) -> int:
    """Of the maximum of instances, what an alert adds; 0: alerts change nothing. BadSpec."""
    stated = Stated(labels, annotations).whole(_FACTOR_KEYS, 0, 100, "percent")
    return STEP_PERCENTAGE_DEFAULT if stated is None else stated


def _least(stated: Stated, minimum: int) -> int:
    zero = stated.text((OPENFAAS + "zero",))
    if zero not in (None, "true", "false"):
        refuse(OPENFAAS + "zero", "true or false", zero)
    if zero == "false":
        return max(1, minimum)
    if zero == "true" and minimum > 1:
        raise BadSpec(
            f"A minimum of {minimum} together with {OPENFAAS}zero: true is not supported: "
            "the one keeps instances and the other lets them all go.",
            "Remove one of the two.",
        )
    # OpenFaaS counts its minimum of 1 only while the function is in use.
    return 0 if zero == "true" else minimum


def _concurrency(stated: Stated) -> int:
    keys = []
    if stated.text((OPENFAAS + "type",)) in (None, "capacity", "inflight"):
        keys.append(OPENFAAS + "target")
    if stated.text((KNATIVE + "metric",)) in (None, "concurrency"):
        keys.append(KNATIVE + "target")
    target = stated.whole(tuple(keys), 1, CONCURRENCY_MAXIMUM, "requests in flight")
    return Scaling().concurrency if target is None else target


def _idle_seconds(stated: Stated) -> float | None:
    text = stated.text(IDLE_KEYS)
    if text is None:
        return None
    seconds = duration_seconds(text)
    if seconds is None or seconds > IDLE_SECONDS_MAXIMUM:
        refuse(
            stated.key_of(IDLE_KEYS),
            f"seconds or a duration such as 5m, at most {IDLE_SECONDS_MAXIMUM:.0f} s",
            text,
        )
    return seconds
