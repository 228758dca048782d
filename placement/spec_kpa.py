"""The keys that choose an autoscaler: Knative's, OpenFaaS' types of load, or that for models.

A bare target does not: it limits the requests in flight, and instances are started for each that
finds no room.
"""

from __future__ import annotations

from stoker.placement.kpa import CONCURRENCY_TARGET, RPS_TARGET, Kpa, Metric
from stoker.placement.spec_fields import Stated, duration_seconds, number, refuse

OPENFAAS = "com.openfaas.scale."
KNATIVE = "autoscaling.knative.dev/"
KPA_CLASS = "kpa.autoscaling.knative.dev"
LLM_CLASS = "llm.stoker"

OPENFAAS_TARGET = 50.0
OPENFAAS_PROPORTION = 0.9
OPENFAAS_WINDOW_MAXIMUM = 300.0
_OPENFAAS_METRICS: dict[str, Metric] = {
    "rps": "rps",
    "capacity": "concurrency",
    "inflight": "concurrency",
}
_SCALE_MAXIMUM = 1000

# A function that is called more than 5 times per second is a busy one.
_CALLS = Kpa("rps", 5.0, utilization=1.0, window_seconds=30.0, initial=0, alone=False)


def kpa_of(stated: Stated, concurrency: int, *, is_chosen: bool = False) -> Kpa | None:
    """The settings of the autoscaler, if it is chosen or one of its keys is there; BadSpec."""
    named, metric = stated.text((KNATIVE + "class",)), stated.text((KNATIVE + "metric",))
    if named not in (None, KPA_CLASS):
        return None
    keys = _Keys(stated)
    if metric in (None, "concurrency", "rps") and (
        named or metric or is_chosen or keys.any_stated()
    ):
        return _knative(keys, "rps" if metric == "rps" else "concurrency", concurrency)
    load = stated.text((OPENFAAS + "type",)) or (
        "capacity" if stated.text((OPENFAAS + "target-proportion",)) else ""
    )
    if load in _OPENFAAS_METRICS:
        return _openfaas(stated, _OPENFAAS_METRICS[load], concurrency)
    return None


def calls_of(stated: Stated) -> Kpa | None:
    """What OpenFaaS does where a maximum is stated and nothing else says what to count."""
    otherwise = (
        *(OPENFAAS + "target", OPENFAAS + "type", KNATIVE + "class"),
        *(key for name in ("metric", "target") for key in _both(name)),
    )
    if stated.text((OPENFAAS + "max",)) is None or any(stated.text((k,)) for k in otherwise):
        return None
    return _CALLS


def llm_of(stated: Stated) -> bool:
    return stated.text((KNATIVE + "class",)) == LLM_CLASS


def _knative(keys: _Keys, metric: Metric, concurrency: int) -> Kpa:
    target = keys.number("target", 0.01, 1e6, "a load per instance")
    if metric == "rps":
        target = RPS_TARGET if target is None else target
    else:
        target = min(CONCURRENCY_TARGET if target is None else target, concurrency)
    default = Kpa()
    utilization = keys.number("target-utilization-percentage", 1, 100, "a percentage")
    threshold = keys.number("panic-threshold-percentage", 110, 1000, "a percentage")
    burst = keys.number("target-burst-capacity", -1, 1e6, "a number of requests")
    initial = keys.number("initial-scale", 0, _SCALE_MAXIMUM, "a number of instances")
    activation = keys.number("activation-scale", 2, _SCALE_MAXIMUM, "a number of instances")
    panic_window = keys.number("panic-window-percentage", 1, 100, "a percentage")
    window = keys.seconds("window", 6.0, 3600.0)
    return Kpa(
        metric=metric,
        target=target,
        utilization=default.utilization if utilization is None else utilization / 100.0,
        window_seconds=window or default.window_seconds,
        panic_window_percentage=panic_window or default.panic_window_percentage,
        panic_threshold=default.panic_threshold if threshold is None else threshold / 100.0,
        burst_capacity=default.burst_capacity if burst is None else burst,
        initial=default.initial if initial is None else int(initial),
        activation=default.activation if activation is None else int(activation),
        down_delay_seconds=keys.seconds("scale-down-delay", 0.0, 3600.0) or 0.0,
    )


def _openfaas(stated: Stated, metric: Metric, concurrency: int) -> Kpa:
    target_key, share_key = OPENFAAS + "target", OPENFAAS + "target-proportion"
    target, share = stated.text((target_key,)), stated.text((share_key,))
    load = number(target_key, target, 1, 1e6, "a load per instance") if target else OPENFAAS_TARGET
    return Kpa(
        metric=metric,
        target=min(load, concurrency) if metric == "concurrency" else load,
        utilization=number(share_key, share, 0.01, 1, "a share") if share else OPENFAAS_PROPORTION,
        # Deploying starts nothing: OpenFaaS has no scale to begin with.
        initial=0,
        down_delay_seconds=_seconds(
            stated, (OPENFAAS + "down.window",), 0.0, OPENFAAS_WINDOW_MAXIMUM
        )
        or 0.0,
    )


class _Keys:
    """Knative's keys by their kebab name, in kebab or camel case."""

    def __init__(self, stated: Stated) -> None:
        self._stated = stated

    def any_stated(self) -> bool:
        names = (
            "target-utilization-percentage",
            "window",
            "panic-window-percentage",
            "panic-threshold-percentage",
            "target-burst-capacity",
            "initial-scale",
            "activation-scale",
            "scale-down-delay",
        )
        return any(self._stated.text(_both(name)) is not None for name in names)

    def number(self, name: str, least: float, most: float, unit: str) -> float | None:
        keys = _both(name)
        text = self._stated.text(keys)
        return None if text is None else number(self._stated.key_of(keys), text, least, most, unit)

    def seconds(self, name: str, least: float, most: float) -> float | None:
        return _seconds(self._stated, _both(name), least, most)


def _both(name: str) -> tuple[str, str]:
    first, *rest = name.split("-")
    return KNATIVE + name, KNATIVE + first + "".join(word.capitalize() for word in rest)


def _seconds(stated: Stated, keys: tuple[str, ...], least: float, most: float) -> float | None:
    text = stated.text(keys)
    if text is None:
        return None
    seconds = duration_seconds(text)
    if seconds is None or not least <= seconds <= most:
        refuse(stated.key_of(keys), f"a duration from {least:g}s to {most:g}s", text)
    return seconds
