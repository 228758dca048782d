from __future__ import annotations

import pytest

from stoker.placement.errors import BadSpec
from stoker.placement.resources import Limits, parse_limits
from stoker.placement.spec import parse_deployment


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("128Mi", 128 << 20),
        ("1Gi", 1 << 30),
        ("0.5Gi", 1 << 29),
        (".5Ki", 512),
        ("64M", 64_000_000),
        ("2k", 2000),
        ("1e6", 1_000_000),
        ("1E3", 1000),
        ("123456", 123456),
        ("1500m", 1),
    ],
)
def test_memory_is_read_as_kubernetes_writes_it(text: str, expected: int) -> None:
    assert parse_limits({"memory": text}).memory_bytes == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("500m", 0.5), ("2", 2.0), ("1.5", 1.5), ("10m", 0.01)]
)
def test_cores_may_be_fractions(text: str, expected: float) -> None:
    assert parse_limits({"cpu": text}).cores == expected


def test_without_limits_nothing_is_limited() -> None:
    assert parse_limits(None) == parse_limits({}) == Limits()
    assert Limits().stated == ()
    assert parse_limits({"pids": "64", "cpu": "1"}).stated == ("cpu", "pids")


@pytest.mark.parametrize(
    "limits",
    [
        {"memory": "much"},
        {"memory": "-1"},
        {"memory": "0"},
        {"memory": "1mi"},
        {"memory": "1e99"},
        {"memory": "9" * 15 + "Pi"},
        {"memory": ""},
        {"memory": "\N{ARABIC-INDIC DIGIT ONE}"},
        {"cpu": "1m"},
        {"cpu": "9999"},
        {"pids": "0"},
        {"pids": "many"},
    ],
)
def test_what_is_no_quantity_is_refused_with_its_key(limits: dict[str, str]) -> None:
    ((name, text),) = limits.items()

    with pytest.raises(BadSpec) as caught:
        parse_deployment({"service": "f", "image": "i", "limits": limits})

    assert f"limits.{name}" in caught.value.cause
    assert repr(text) in caught.value.cause


def test_a_limit_that_nobody_knows_is_refused() -> None:
    with pytest.raises(BadSpec, match=r"memory, cpu, pids in limits, found 'disk'"):
        parse_limits({"disk": "1Gi"})


@pytest.mark.parametrize(("cpu", "expected"), [("100m", 1), ("1", 1), ("1200m", 2), ("64", 8)])
def test_as_many_threads_compute_as_the_limit_has_cores(cpu: str, expected: int) -> None:
    assert parse_limits({"cpu": cpu}).threads(8) == expected
    assert parse_limits({}).threads(8) == 8
