"""The annotation `stoker/devices`: any one of several kinds, each with how many on one node.

h100                one H100
h100:1, a100:2      one H100, or two A100 of the same node
h100:1, cpu         an H100, or a node without one
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from stoker.placement.errors import BadSpec
from stoker.placement.records import DeviceNeed
from stoker.placement.spec_fields import PREFIX, refuse

KEY = PREFIX + "devices"
CHOICES_MAXIMUM = 16
COUNT_MAXIMUM = 64

_NEED = re.compile(r"([a-z0-9]{1,32})(?::([1-9]\d?))?", re.ASCII)


def devices_of(annotations: Mapping[str, str], model_uri: str | None) -> tuple[DeviceNeed, ...]:
    """What the function may run on, best first; BadSpec for what is no such list."""
    text = annotations.get(KEY)
    if text is None:
        return ()
    needs = tuple(_need(part.strip(), text) for part in text.split(","))
    kinds = [need.kind for need in needs]
    if len(needs) > CHOICES_MAXIMUM or len(set(kinds)) < len(kinds):
        refuse(KEY, f"at most {CHOICES_MAXIMUM} kinds of devices, each once", text)
    if model_uri is not None and set(kinds) != {"cpu"}:
        raise BadSpec(
            f"Expected {KEY}: cpu beside stoker/model, found {text!r:.100}: the engine "
            "transformers computes on the CPU in this release.",
            f"Remove {KEY}, or bring code that uses the devices itself.",
        )
    return needs


def _need(part: str, text: str) -> DeviceNeed:
    matched = _NEED.fullmatch(part)
    if matched is None or (matched[1] == "cpu" and matched[2]):
        refuse(KEY, "kinds with their counts such as `h100:1, a100:2, cpu`", text)
    if matched[1] == "cpu":
        return DeviceNeed("cpu", 0)
    count = int(matched[2] or 1)
    if count > COUNT_MAXIMUM:
        refuse(KEY, f"at most {COUNT_MAXIMUM} devices of one node", text)
    return DeviceNeed(matched[1], count)
