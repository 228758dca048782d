"""Ten thousand names that would lead elsewhere: what is taken for a name stays below its folder."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from stoker.placement.errors import BadRequest
from stoker.placement.names import (
    split_function_name,
    valid_digest,
    valid_function_name,
    valid_namespace,
    valid_node_id,
    valid_secret_name,
    valid_zone,
)

PIECES = (
    *("..", ".", "/", "\\", "%2e", "%2f", "%00", "\0", "~", "etc", "passwd", "a", "B", "0"),
    *("-", "_", "\n", "\r", "\x1b[31m", "\u202e", "\u2215", "\uff0f", "\u0130", " ", "sha256:"),
    *("C:", "//", "file://", "a" * 64, "a" * 63, "${HOME}", "$(id)", "`id`", "|", ";", "*"),
)
VALIDATORS: tuple[Callable[[object], str], ...] = (
    valid_function_name,
    valid_namespace,
    valid_secret_name,
    valid_node_id,
    valid_digest,
    valid_zone,
    lambda name: ".".join(split_function_name(str(name))),
)


def test_no_name_of_ten_thousand_leads_out_of_its_folder(tmp_path: Path) -> None:
    draw = random.Random(8)
    root = tmp_path / "root"
    taken = set()
    for _ in range(10_000):
        name = "".join(draw.choices(PIECES, k=draw.randint(1, 5)))
        for valid in VALIDATORS:
            try:
                found = valid(name)
            except BadRequest:
                continue
            assert (root / f"{found}.x").resolve().parent == root.resolve(), name
            assert found.isascii()
            assert found.isprintable()
            assert not set(found) & set("/\\%\0 $`|;*~")
            taken.add(found)
    # The names that are none were not all that was drawn.
    assert len(taken) > 50
