"""The annotations by which a function says how to ask whether it is healthy and ready."""

from __future__ import annotations

import pytest

from harness.specs import deployment
from stoker.placement.errors import BadSpec
from stoker.placement.spec import parse_deployment
from stoker.placement.spec_probes import HEALTH, READY, Probe, health_probe, ready_probe


def test_without_a_path_nothing_is_asked() -> None:
    assert health_probe({}) is None
    assert ready_probe({READY + "periodSeconds": "5"}) is None


def test_each_setting_has_a_default_and_may_be_seconds_or_a_duration() -> None:
    assert health_probe({HEALTH + "path": "/live"}) == Probe("/live", 0.0, 2.0, 1.0, 1, 3)
    stated = {
        "path": "/ready?deep=1",
        "initialDelaySeconds": "30s",
        "periodSeconds": "5",
        "timeoutSeconds": "1m",
        "successThreshold": "2",
        "failureThreshold": "4",
    }
    probe = ready_probe({READY + key: value for key, value in stated.items()})
    assert probe == Probe("/ready?deep=1", 30.0, 5.0, 60.0, 2, 4)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("path", "live"),
        ("path", "/a b"),
        ("path", "/a\r\nX: y"),
        ("path", "/" + "x" * 600),
        ("periodSeconds", "0"),
        ("periodSeconds", "often"),
        ("timeoutSeconds", "2h"),
        ("initialDelaySeconds", "-1"),
        ("failureThreshold", "0"),
        ("successThreshold", "1.5"),
    ],
)
def test_a_bad_value_is_refused_at_deploy_by_its_key(key: str, value: str) -> None:
    for prefix in (HEALTH, READY):
        annotations = {prefix + "path": "/x", prefix + key: value}
        if prefix == HEALTH and key == "successThreshold":
            continue
        with pytest.raises(BadSpec, match=prefix.replace(".", r"\.") + key):
            parse_deployment(deployment(annotations=annotations))
