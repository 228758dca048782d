"""The placement benchmark's W2: its world is the documented one, and its figures repeat."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PLACEMENT = Path(__file__).resolve().parents[2] / "benchmarks" / "placement"


@pytest.fixture(autouse=True)
def import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PLACEMENT))


def test_the_models_have_the_published_sizes_and_fit_their_devices() -> None:
    import worlds

    found = {m.name: (round(m.weight_bytes / 1e9, 1), m.copies, m.devices) for m in worlds.MODELS}
    assert found == {
        "opt-6.7b": (13.4, 32, 1),
        "opt-13b": (26.0, 16, 1),
        "opt-30b": (60.0, 8, 2),
    }
    for model in worlds.MODELS:
        assert model.weight_bytes / model.devices < 48e9
        world = worlds.w2_cluster(model).world()
        assert len(world.nodes) == 4
        assert all(len(node.ssd) == model.copies for node in world.nodes.values())


def test_documented_lengths_have_the_documented_percentiles() -> None:
    import worlds

    for name, (prompts, outputs) in worlds.DOCUMENTED.items():
        lengths = worlds.lengths_of(name, None)
        drawn = sorted(output for _, output in lengths)
        assert drawn[len(drawn) // 2] == pytest.approx(outputs[0], rel=0.1)
        assert drawn[int(0.95 * len(drawn))] == pytest.approx(outputs[1], rel=0.15)
        assert all(p + o <= worlds.CONTEXT_TOKENS and p > 0 for p, o in lengths)
        assert prompts[0] > 0


def run(output: Path) -> dict[str, Any]:
    ran = subprocess.run(
        [
            *(sys.executable, str(PLACEMENT / "w2.py"), "--output", str(output)),
            *("--seeds", "2", "--minutes", "1", "--rps", "1.4"),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    line = json.loads(ran.stdout.splitlines()[-1])
    assert line["benchmark"] == "placement-w2"
    found: dict[str, Any] = line["figures"]
    return found


def test_the_same_arguments_give_the_same_figures(tmp_path: Path) -> None:
    first = run(tmp_path / "a.json")
    assert first == run(tmp_path / "b.json")
    assert first["w2_cells"] == 18
    assert 0 < first["w2_cells_not_saturated"] < 18
    for name in ("serverlessllm", "shepherd", "random"):
        least, most = first[f"w2_p99_vs_{name}_spread"]
        assert least <= first[f"w2_p99_vs_{name}"] <= most
    cells = json.loads((tmp_path / "a.json").read_text())
    for cell in cells:
        counts = {len(rows) for rows in cell["policies"].values()}
        assert counts == (set() if cell["saturated"] else {2})
        for seeds in zip(*cell["policies"].values(), strict=True):
            # The same requests met every policy.
            assert len({figures["requests"] for figures in seeds}) == 1
