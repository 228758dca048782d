"""The loader benchmark runs, proves what it loaded, and ends with its figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOADER = ROOT / "benchmarks" / "loader"


@pytest.fixture(autouse=True)
def import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(LOADER))


def test_the_last_line_has_the_figures_and_the_file_the_samples(tmp_path: Path) -> None:
    output = tmp_path / "loader.json"
    ran = subprocess.run(
        [
            *(sys.executable, str(LOADER / "run.py"), "--no-peers", "--rounds", "1"),
            *("--gib", "0.01", "--conditions", "dram", "--prime-gib", "0"),
            *("--folder", str(tmp_path), "--output", str(output)),
        ],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    last = json.loads(ran.stdout.splitlines()[-1])
    assert last["benchmark"] == "loader"
    assert last["figures"]["dram_attach_ms"] > 0
    assert last["figures"]["cold_ssd_vs_runai"] is None
    kept = json.loads(output.read_text())
    assert kept["figures"] == last["figures"]
    assert kept["rounds"][0]["dram"]["stoker_attach"]["seconds"] > 0
    assert kept["machine"]["cores"] == len(os.sched_getaffinity(0))


def test_a_changed_byte_changes_the_fingerprint() -> None:
    import proof
    import torch

    tensors = {"a": torch.zeros(5000, dtype=torch.float16)}
    before = proof.fingerprint(tensors)
    tensors["a"][4999] = 1
    assert proof.fingerprint(tensors) != before


def test_the_bucket_keeps_the_rate_over_all_who_take() -> None:
    import throttle

    bucket = throttle.Bucket(10e6)
    begun = time.monotonic()
    takers = [threading.Thread(target=lambda: bucket.take(500_000)) for _ in range(4)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join()
    assert 0.19 <= time.monotonic() - begun < 2


def test_ratios_are_taken_within_rounds_and_absent_peers_give_none() -> None:
    import report

    rounds = [
        {"cold": {"stoker": {"seconds": 1.0}, "runai": {"seconds": 2.0}}},
        {"cold": {"stoker": {"seconds": 4.0}, "runai": {"seconds": 4.0}}},
        {"cold": {"stoker": {"seconds": 1.0}}},
    ]
    assert report.ratio(rounds, "cold", "runai", "stoker") == 1.5
    assert report.ratio(rounds, "cold", ("runai", "absent"), "stoker") == 1.5
    assert report.ratio(rounds, "cold", "absent", "stoker") is None
