import random
import statistics
from itertools import pairwise

import pytest

from stoker.placement.simulate_files import cluster_of
from stoker.placement.simulate_workload import (
    drawn_requests,
    gamma_arrivals,
    node_failures,
    zipf_shares,
)


@pytest.mark.parametrize("variation", [1.0, 3.0, 8.0])
def test_arrivals_have_the_rate_and_the_variation_that_were_asked_for(variation: float) -> None:
    times = gamma_arrivals(5.0, variation, 100_000.0, random.Random(1))
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert len(times) == pytest.approx(500_000, rel=0.05)
    found = statistics.pstdev(gaps) / statistics.fmean(gaps)
    assert found == pytest.approx(variation, rel=0.05)


def test_a_stream_that_begins_anywhere_has_its_rate_from_the_start() -> None:
    counts = [len(gamma_arrivals(0.05, 8.0, 100.0, random.Random(seed))) for seed in range(4000)]
    assert statistics.fmean(counts) == pytest.approx(5.0, rel=0.15)


def test_popularity_falls_with_the_rank() -> None:
    shares = zipf_shares(100, 1.7)
    assert sum(shares) == pytest.approx(1.0)
    assert shares[0] / shares[9] == pytest.approx(10**1.7)
    assert zipf_shares(4, 0.0) == [0.25] * 4


def test_requests_are_in_order_and_drawn_by_seed() -> None:
    described = {
        "nodes": [{}],
        "functions": [
            {"name": "f", "count": 5, "token_seconds": 0.1, "prompt_token_seconds": 0.01}
        ],
    }
    functions = cluster_of(described, "here").made_functions()

    def drawn(seed: int) -> list[tuple[float, str, int, int]]:
        found = drawn_requests(
            functions,
            [(10, 1), (20, 2)],
            rate=2.0,
            variation=2.0,
            seconds=200.0,
            seed=seed,
            zipf=1.0,
        )
        for request in found:
            seconds = 0.01 * request.prompt_tokens + 0.1 * request.output_tokens
            assert request.left_seconds == pytest.approx(seconds)
        return [
            (r.arrived_at, r.function.record.name, r.prompt_tokens, r.output_tokens) for r in found
        ]

    first = drawn(1)
    assert first == sorted(first, key=lambda row: row[0])
    assert (drawn(1) == first, drawn(2) == first) == (True, False)
    assert {row[2:] for row in first} == {(10, 1), (10, 2), (20, 1), (20, 2)}


def test_failures_come_by_seed_and_never_while_a_node_is_down() -> None:
    found = node_failures(["a", "b"], mean_seconds=100.0, down_seconds=30.0, end=10_000.0, seed=3)
    assert found == sorted(found)
    assert 100 < len(found) < 220
    for node in ("a", "b"):
        times = [at for at, node_id, _ in found if node_id == node]
        assert all(later - earlier >= 30.0 for earlier, later in pairwise(times))
