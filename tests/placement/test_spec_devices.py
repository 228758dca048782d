from __future__ import annotations

import pytest

from harness.specs import deployment, model
from stoker.placement.errors import BadSpec
from stoker.placement.records import DeviceNeed
from stoker.placement.spec import parse_deployment, record_from_draft


def parsed(text: str) -> tuple[DeviceNeed, ...]:
    return parse_deployment(deployment(annotations={"stoker/devices": text})).devices


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("h100", (DeviceNeed("h100", 1),)),
        ("h100:1, a100:2", (DeviceNeed("h100", 1), DeviceNeed("a100", 2))),
        ("rtx4090:8,cpu", (DeviceNeed("rtx4090", 8), DeviceNeed("cpu", 0))),
        ("cpu", (DeviceNeed("cpu", 0),)),
    ],
)
def test_devices_are_any_of_several_kinds_with_their_counts(
    text: str, expected: tuple[DeviceNeed, ...]
) -> None:
    assert parsed(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "h100:0", "h100:65", "h100:", "H100", "h100;a100", "cpu:2", "h100,", "h100, h100:2"],
)
def test_what_is_no_such_list_is_refused_with_what_was_found(text: str) -> None:
    with pytest.raises(BadSpec, match=f"at stoker/devices, found '{text}'"):
        parsed(text)


def test_a_function_keeps_the_devices_that_it_was_deployed_with() -> None:
    draft = parse_deployment(deployment(annotations={"stoker/devices": "h100:2"}))

    assert record_from_draft(draft, None, "c" * 64, 0.0, 1).devices == (DeviceNeed("h100", 2),)


def test_a_model_that_an_engine_computes_on_the_cpu_cannot_ask_for_another_device() -> None:
    assert parse_deployment(model(devices="cpu")).devices == (DeviceNeed("cpu", 0),)
    for text in ("h100", "h100:1, cpu"):
        with pytest.raises(BadSpec, match=rf"cpu beside stoker/model, found '{text}'.*on the CPU"):
            parse_deployment(model(devices=text))
