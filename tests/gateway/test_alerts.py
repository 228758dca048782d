"""POST /system/alert: what Alertmanager says of busy functions."""

from __future__ import annotations

from typing import Any

import pytest

from harness.gateway import Bench
from stoker.gateway.alerts import replicas_after
from stoker.placement.records import FunctionRecord, Scaling, decode


def function(minimum: int, maximum: int, **labels: str) -> FunctionRecord:
    scaling = Scaling(minimum=minimum, maximum=maximum)
    stated = {f"com.openfaas.scale.{key}": value for key, value in labels.items()}
    return FunctionRecord("f", "ns", "image", scaling=scaling, labels=stated)


@pytest.mark.parametrize(
    ("subject", "replicas", "firing", "expected"),
    [
        (function(1, 20), 1, True, 5),
        (function(1, 20), 18, True, 20),
        (function(1, 5), 1, True, 2),
        (function(1, 20, factor="50"), 1, True, 11),
        (function(2, 20), 8, False, 2),
        (function(0, 20), 8, False, 1),
        (function(1, 20, factor="0"), 1, True, None),
        (function(3, 3), 3, True, None),
        (function(3, 3), 3, False, None),
    ],
)
def test_an_alert_adds_a_share_of_the_maximum_and_its_end_leaves_the_minimum(
    subject: FunctionRecord, replicas: int, firing: bool, expected: int | None
) -> None:
    assert replicas_after(subject, replicas, firing=firing) == expected


def alerts(*pairs: tuple[str, str]) -> dict[str, Any]:
    return {
        "receiver": "scale-up",
        "alerts": [
            {"status": status, "labels": {"alertname": "Busy", "function_name": name}}
            for name, status in pairs
        ],
    }


def test_alerts_ask_for_instances_of_the_functions_that_they_name(bench: Bench) -> None:
    busy, calm = (bench.function(scaling=Scaling(minimum=1, maximum=10)) for _ in range(2))
    told = alerts((busy.key, "firing"), (calm.name, "resolved"), ("gone.openfaas-fn", "firing"))
    assert bench.system("POST", "/system/alert", told).status == 200
    requested = []
    for record in (busy, calm):
        entry = bench.store.get(record.path)
        assert entry is not None
        requested.append(decode(FunctionRecord, entry.value).replicas_requested)
    assert requested == [2, 1]


@pytest.mark.parametrize(
    "body",
    [
        b"no json",
        {},
        {"alerts": {}},
        {"alerts": [1]},
        {"alerts": [{"status": "firing"}]},
        alerts(("a/b", "firing")),
        alerts(("f", "maybe")),
        alerts(*[("f", "firing")] * 1001),
    ],
)
def test_what_is_no_webhook_of_alertmanager_is_refused(bench: Bench, body: Any) -> None:
    assert bench.system("POST", "/system/alert", body).status == 400
