"""The keys that choose an autoscaler."""

import re

import pytest

from harness.specs import scaling
from stoker.placement.errors import BadSpec
from stoker.placement.kpa import Kpa
from stoker.placement.records import FunctionRecord, decode, encode


def test_a_bare_target_leaves_the_requests_of_the_moment_to_decide() -> None:
    for labels in ({}, {"com.openfaas.scale.target": "3"}, {"autoscaling.knative.dev/target": "7"}):
        assert (scaling(labels).kpa, scaling(labels).llm) == (None, False)


KNATIVE = "autoscaling.knative.dev/"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({KNATIVE + "class": "kpa.autoscaling.knative.dev"}, Kpa(target=16.0)),
        ({KNATIVE + "metric": "rps"}, Kpa(metric="rps", target=200.0)),
        (
            {KNATIVE + "metric": "rps", KNATIVE + "target": "0.5"},
            Kpa(metric="rps", target=0.5),
        ),
        (
            {KNATIVE + "metric": "concurrency", KNATIVE + "target": "4"},
            Kpa(target=4.0),
        ),
        (
            {
                KNATIVE + "target-utilization-percentage": "90",
                KNATIVE + "window": "2m",
                KNATIVE + "panicWindowPercentage": "20",
                KNATIVE + "panic-threshold-percentage": "150",
                KNATIVE + "targetBurstCapacity": "-1",
                KNATIVE + "initial-scale": "3",
                KNATIVE + "activationScale": "2",
                KNATIVE + "scale-down-delay": "15s",
            },
            Kpa("concurrency", 16.0, 0.9, 120.0, 20.0, 1.5, -1.0, 3, 2, 15.0),
        ),
        (
            {"com.openfaas.scale.type": "rps"},
            Kpa(metric="rps", target=50.0, utilization=0.9, initial=0),
        ),
        (
            {
                "com.openfaas.scale.type": "capacity",
                "com.openfaas.scale.target": "5",
                "com.openfaas.scale.target-proportion": "0.7",
                "com.openfaas.scale.down.window": "5m",
            },
            Kpa(target=5.0, utilization=0.7, initial=0, down_delay_seconds=300.0),
        ),
    ],
)
def test_the_keys_of_an_autoscaler_choose_it(labels: dict[str, str], expected: Kpa) -> None:
    found = scaling(labels)
    assert found.kpa == expected
    record = FunctionRecord("f", "ns", "img", scaling=found)
    assert decode(FunctionRecord, encode(record)) == record


def test_other_metrics_are_kept_and_nothing_acts_on_them() -> None:
    for labels in (
        {"com.openfaas.scale.type": "cpu", "com.openfaas.scale.target": "50"},
        {KNATIVE + "class": "hpa.autoscaling.knative.dev", KNATIVE + "metric": "cpu"},
    ):
        assert scaling(labels) == scaling({})


def test_the_class_for_models_is_chosen_by_its_name() -> None:
    found = scaling({KNATIVE + "class": "llm.stoker", KNATIVE + "window": "60s"})
    assert (found.llm, found.kpa) == (True, None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (KNATIVE + "window", "5s"),
        (KNATIVE + "window", "2h"),
        (KNATIVE + "target-utilization-percentage", "0"),
        (KNATIVE + "panic-threshold-percentage", "109"),
        (KNATIVE + "target-burst-capacity", "-2"),
        (KNATIVE + "activation-scale", "1"),
        (KNATIVE + "initialScale", "many"),
        ("com.openfaas.scale.target-proportion", "1.5"),
    ],
)
def test_a_setting_out_of_its_range_is_refused_by_its_name(key: str, value: str) -> None:
    with pytest.raises(BadSpec, match=re.escape(key)):
        scaling({key: value})
