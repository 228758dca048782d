"""How long a large cluster takes to simulate: 1,000 nodes, 10,000 functions, an hour.

    python benchmarks/placement/large.py [--nodes 1000] [--functions 10000] [--minutes 60]

Functions are called by popularity (Zipf 1.1), in bursts (CV 3). Every node has 4 devices.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Sequence
from typing import Any

from stoker.placement.simulate_files import Cluster, cluster_of
from stoker.placement.simulate_parts import Function, Request
from stoker.placement.simulate_run import simulate
from stoker.placement.simulate_workload import drawn_requests

LENGTHS = [(200, 50), (1000, 100), (500, 200), (3000, 400)]


def large_cluster(nodes: int, functions: int) -> Cluster:
    return cluster_of(
        {
            "nodes": [
                {
                    "name": "node",
                    "count": nodes,
                    "devices": 4,
                    "dram_bytes": 256e9,
                    "ssd_bytes": 2e12,
                    "ssd_bandwidth": 5e9,
                }
            ],
            "functions": [
                {
                    "name": "f",
                    "count": functions,
                    "weight_bytes": 14e9,
                    "devices": 1,
                    "concurrency": 8,
                    "token_seconds": 0.025,
                    "prompt_token_seconds": 0.0002,
                    "ssd_copies": 3,
                }
            ],
        },
        "large",
    )


def figures(
    nodes: int = 1000,
    functions: int = 10_000,
    minutes: float = 60.0,
    rate: float = 100.0,
    policy: str = "stoker",
) -> dict[str, Any]:
    """Simulate it once, with the requests and the cluster made before, and time all of it."""
    began_at = time.perf_counter()
    cluster = large_cluster(nodes, functions)

    def workload(made: Sequence[Function], seed: int) -> list[Request]:
        return drawn_requests(
            made,
            LENGTHS,
            rate=rate,
            variation=3.0,
            seconds=minutes * 60.0,
            seed=seed,
            zipf=1.1,
        )

    found = simulate(cluster, workload, policy, 1).figures()
    seconds = time.perf_counter() - began_at
    print(f"{nodes} nodes, {functions} functions, {minutes:g} min: {seconds:.1f} s")
    for name in ("requests", "warm_share", "start_seconds_p99", "starts", "decisions"):
        print(f"  {name:20} {found[name]:.6g}")
    return {
        "simulate_large_seconds": round(seconds, 1),
        "simulate_large_requests": found["requests"],
        "simulate_large_decisions": found["decisions"],
        "simulate_large_max_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--functions", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second")
    parser.add_argument("--policy", default="stoker")
    print(json.dumps(figures(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
