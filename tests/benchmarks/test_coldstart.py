"""The cold-start benchmark: its arithmetic, and how it waits for others and ends them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

COLDSTART = Path(__file__).resolve().parents[2] / "benchmarks" / "coldstart"
SERVER = """
import http.server, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"],
                         start_new_session=True)
print(child.pid, flush=True)
time.sleep(0.3)
class Handler(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        Handler.asked += 1
        self.send_response(503 if Handler.asked < 3 else 200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        if Handler.asked >= 3:
            self.wfile.write(b'data: {"choices": [{"delta": {"role": "assistant"}}]}\\n\\n')
            self.wfile.flush()
            time.sleep(0.2)
            self.wfile.write(b'data: {"choices": [{"delta": {"content": "Blue"}}]}\\n\\n')
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture(autouse=True)
def import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(COLDSTART))


def starts(**milliseconds: float | list[float]) -> dict[str, Any]:
    """A round with the starts of chat: `dram=100` or `dram=[90, 100, 120]`."""
    listed = {k: v if isinstance(v, list) else [v] for k, v in milliseconds.items()}
    return {f"chat {k}": [{"ttft_ms": ms} for ms in v] for k, v in listed.items()}


def streams(**by: dict[str, Any]) -> dict[str, Any]:
    """One pair of measurements of 1 and of 16 streams."""
    pair = {name: {**f, "streams": [{"text": t} for t in f["texts"]]} for name, f in by.items()}
    return {"1": [pair], "16": [pair]}


def test_what_is_compared_is_compared_within_rounds() -> None:
    import figures

    rounds = [
        starts(warm=[50, 60, 70], dram=100),
        starts(warm=100, dram=110),
        starts(warm=10),
        starts(warm=200, dram=230),
    ]
    assert figures.over(rounds, "chat dram", "chat warm") == 30
    assert figures.ratio(rounds, "chat dram", "chat warm") == 1.15
    assert figures.over(rounds, "chat dram", "chat absent") is None
    assert figures.ratio([{}], ("ray_serve", "litserve"), "chat dram") is None


def test_the_best_peer_is_the_fastest_of_each_round() -> None:
    import figures

    rounds = [
        starts(dram=100) | {"llama_cpp": [{"ttft_ms": 900}], "ray_serve": [{"ttft_ms": 9000}]},
        starts(dram=100) | {"ray_serve": [{"ttft_ms": 7000}]},
        starts(dram=100) | {"llama_cpp": [{"ttft_ms": 800}]},
    ]
    assert figures.ratio(rounds, ("llama_cpp", "ray_serve"), "chat dram") == 9


def test_bounds_are_those_that_are_promised() -> None:
    import figures

    assert figures.ssd_bound_ms(200_000_000, 1e9, 100) == pytest.approx(280)
    assert figures.ssd_bound_ms(10_000_000, 1e9, 100) == pytest.approx(165)
    assert figures.wire_bound_ms(100_000_000, 1e8) == pytest.approx(1150)
    assert figures.overlap_bound_ms(3000, 2000) == pytest.approx(3300)
    assert figures.overlap_bound_ms(3000, 4000) == pytest.approx(4400)


def test_the_figures_of_a_round_are_all_there() -> None:
    import figures

    taken = {
        **starts(warm=50, parked=70, dram=100, zygote_only=250),
        **starts(ssd=280, s3=900, s3_throttled=1150),
        **starts(fresh_process=3000, fresh_process_cold=5600),
        "embed dram": [{"ttft_ms": 40}],
        "embed warm": [{"ttft_ms": 10}],
        "llama_cpp": [{"ttft_ms": 2000}],
        "device_bytes_per_second": 1e9,
        "chat overlap": [{"ttft_ms": 3600, "load_ms": 3000, "prefill_ms": 2000}],
        "zygote_memory": {"zygote_private": 41_500_000, "parked_private": 12_000_000},
        "streams": streams(
            stoker={"tokens_per_second": 95, "ttft_ms_p50": 52, "texts": ["a", "b"]},
            transformers={"tokens_per_second": 100, "ttft_ms_p50": 50, "texts": ["a", "c"]},
        ),
    }
    found = figures.figures([taken], {"chat": 100_000_000, "embed": 90_000_000}, 1e8)
    expected = {
        "dram_over_warm_ms": 50,
        "parked_over_warm_ms": 20,
        "zygote_only_over_warm_ms": 200,
        "fresh_process_over_dram": 30,
        "fresh_process_over_ssd_cold": 20,
        "best_peer_over_dram": 20,
        "ssd_over_bound": round(280 / 165, 3),
        "s3_throttled_over_wire": 1.15,
        "s3_throttled_over_bound": 1,
        "overlap_over_bound": round(3600 / 3300, 3),
        "overhead_tokens_per_second_percent": 5,
        "overhead_ttft_ms": 2,
        "equal_answers_share_at_1": 0.5,
        "zygote_private_mb": 41.5,
        "parked_private_mb": 12,
        "embed_dram_over_warm_ms": 30,
    }
    assert {name: found[name] for name in expected} == expected


def test_the_order_of_a_round_depends_on_seed_and_number_alone() -> None:
    import starts as measured

    orders = [measured.shuffled(measured.GROUPS, 7, number) for number in range(4)]
    assert orders[1] == measured.shuffled(measured.GROUPS, 7, 1)
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == sorted(measured.GROUPS) for order in orders)


def test_a_server_is_timed_from_its_launch_and_ended_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import serving

    pids = tmp_path / "pids"
    command = f"{SERVER}".replace(
        "print(child.pid", f"print(child.pid, file=open({str(pids)!r}, 'w')"
    )
    server = serving.Server(lambda _bin, _folder, port: [sys.executable, "-c", command, str(port)])
    monkeypatch.setitem(serving.SERVERS, "litserve", server)

    sample = serving.measure_server("litserve", tmp_path)

    assert sample["text"] == "Blue"
    assert 500 <= sample["ttft_ms"] < 20_000
    assert not psutil.pid_exists(int(pids.read_text()))


def test_a_server_that_ends_fails_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import serving

    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    monkeypatch.setitem(serving.SERVERS, "litserve", serving.Server(lambda *_: command))
    with pytest.raises(serving.Failed, match="no such model"):
        serving.measure_server("litserve", tmp_path)


def test_percentiles_of_few_streams_lie_between_them() -> None:
    import figures

    assert figures.percentile([5.0], 95) == 5.0
    assert figures.percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.5
    assert figures.percentile([float(n) for n in range(101)], 95) == 95.0
