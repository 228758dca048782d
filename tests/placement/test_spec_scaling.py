"""How many instances a spec asks for: the names that people know from OpenFaaS and Knative."""

import pytest

from harness.specs import scaling
from stoker.placement.errors import BadSpec


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"com.openfaas.scale.min": "2", "com.openfaas.scale.max": "3"}, (2, 3)),
        ({"autoscaling.knative.dev/min-scale": "1"}, (1, 4)),
        ({"autoscaling.knative.dev/minScale": "6"}, (6, 6)),
        ({"autoscaling.knative.dev/maxScale": "0"}, (0, 1000)),
        ({"com.openfaas.scale.zero": "false"}, (1, 4)),
        ({"com.openfaas.scale.zero": "false", "com.openfaas.scale.min": "2"}, (2, 4)),
        ({"com.openfaas.scale.zero": "true", "com.openfaas.scale.min": "1"}, (0, 4)),
    ],
)
def test_the_names_people_know_set_the_bounds(
    labels: dict[str, str], expected: tuple[int, int]
) -> None:
    found = scaling(labels)
    assert (found.minimum, found.maximum) == expected
    assert scaling({}, annotations=labels) == found


@pytest.mark.parametrize(
    ("labels", "concurrency"),
    [
        ({"com.openfaas.scale.target": "3"}, 3),
        ({"com.openfaas.scale.target": "3", "com.openfaas.scale.type": "capacity"}, 3),
        ({"com.openfaas.scale.target": "50", "com.openfaas.scale.type": "rps"}, 16),
        ({"autoscaling.knative.dev/target": "7"}, 7),
        ({"autoscaling.knative.dev/target": "200", "autoscaling.knative.dev/metric": "rps"}, 16),
    ],
)
def test_a_target_of_requests_in_flight_is_the_concurrency(
    labels: dict[str, str], concurrency: int
) -> None:
    assert scaling(labels).concurrency == concurrency


@pytest.mark.parametrize(
    "key",
    [
        "com.openfaas.scale.zero-duration",
        "autoscaling.knative.dev/scale-to-zero-pod-retention-period",
        "autoscaling.knative.dev/scaleToZeroPodRetentionPeriod",
    ],
)
def test_the_idle_time_has_three_names(key: str) -> None:
    assert scaling({key: "1m5s"}).idle_seconds == 65.0


@pytest.mark.parametrize(
    "labels",
    [
        {"com.openfaas.scale.min": "3", "com.openfaas.scale.max": "2"},
        {"com.openfaas.scale.min": "many"},
        {"com.openfaas.scale.max": "0"},
        {"com.openfaas.scale.max": "1001"},
        {"com.openfaas.scale.zero": "maybe"},
        {"com.openfaas.scale.zero": "true", "com.openfaas.scale.min": "2"},
        {"com.openfaas.scale.target": "0"},
        {"com.openfaas.scale.min": "1", "autoscaling.knative.dev/min-scale": "2"},
        {"com.openfaas.scale.zero-duration": "later"},
        {"com.openfaas.scale.factor": "101"},
    ],
)
def test_bounds_that_cannot_hold_are_refused(labels: dict[str, str]) -> None:
    with pytest.raises(BadSpec, match=r"com\.openfaas\.scale\."):
        scaling(labels)


def test_a_label_and_an_annotation_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(BadSpec, match="one value"):
        scaling({"com.openfaas.scale.min": "1"}, annotations={"com.openfaas.scale.min": "2"})


def test_with_openfaas_maximum_alone_more_than_5_calls_per_second_are_too_many_for_one() -> None:
    bounds = {"com.openfaas.scale.min": "1", "com.openfaas.scale.max": "2"}
    kpa = scaling(bounds).kpa
    assert kpa is not None
    assert (kpa.metric, kpa.target_load, kpa.alone) == ("rps", 5.0, False)


@pytest.mark.parametrize(
    "labels",
    [
        {"com.openfaas.scale.min": "1"},
        {"com.openfaas.scale.min": "2", "com.openfaas.scale.max": "2"},
        {"com.openfaas.scale.max": "2", "com.openfaas.scale.target": "3"},
        {"com.openfaas.scale.max": "2", "com.openfaas.scale.factor": "0"},
        {"com.openfaas.scale.max": "2", "com.openfaas.scale.type": "cpu"},
        {"autoscaling.knative.dev/max-scale": "2"},
    ],
)
def test_whoever_states_another_measure_or_leaves_no_choice_is_not_scaled_by_calls(
    labels: dict[str, str],
) -> None:
    assert scaling(labels).kpa is None
