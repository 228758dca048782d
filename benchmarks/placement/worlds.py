"""The simulated clusters and their traffic.

W2 is ServerlessLLM's evaluation: 4 servers of 4 A40 (48 GB), 512 GB of memory, a 2 TB NVMe and
10 Gbps each; OPT-6.7B, 13B and 30B as 32, 16 and 8 distinct models, put onto the SSDs round robin
until these are full; bursts with a coefficient of variation of 8, lengths of GSM8K and ShareGPT;
300 s until a request is given up. Bandwidths are the authors' own: 24 GB/s from memory to a device,
5 GB/s from the SSD. How long tokens take follows from the A40 (696 GB/s, 150 TFLOPS) at four fifths
of its memory's and half of its arithmetic's peak. An instance runs one request at a time, as their
engine does.

Models are called equally often. They were deployed five minutes before the first of them is called,
with nothing in memory. Their idle instances stay as long as a load takes, which is what the paper's
baselines do; `stoker` keeps them by what it learns. Under every policy an idle instance gives way
to who waits.
"""

from __future__ import annotations

import gzip
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stoker.placement.simulate_files import Cluster, cluster_of, read_lengths
from stoker.placement.simulate_workload import Lengths

SSD_BANDWIDTH = 5e9
DEVICE_BANDWIDTH = 24e9
NETWORK_BANDWIDTH = 1.25e9
A40_MEMORY_BANDWIDTH = 0.8 * 696e9
A40_FLOPS = 0.5 * 150e12
CONTEXT_TOKENS = 2048
TIMEOUT_SECONDS = 300.0
DEPLOYED_SECONDS = 300.0
TOKEN_CHARACTERS = 4
# Documented (median, 95th percentile) of prompts and outputs, where no data is given.
DOCUMENTED = {"gsm8k": ((58, 110), (68, 139)), "sharegpt": ((1730, 6563), (415, 920))}
DRAWN_LENGTHS = 4000


@dataclass(frozen=True, slots=True)
class Model:
    """`devices` is what its weights need of 48 GB devices."""

    name: str
    parameters: float
    copies: int
    devices: int

    @property
    def weight_bytes(self) -> float:
        return 2.0 * self.parameters

    @property
    def token_seconds(self) -> float:
        return self.weight_bytes / (self.devices * A40_MEMORY_BANDWIDTH)

    @property
    def prompt_token_seconds(self) -> float:
        return 2.0 * self.parameters / (self.devices * A40_FLOPS)

    @property
    def load_seconds(self) -> float:
        return self.weight_bytes / SSD_BANDWIDTH


MODELS = (
    Model("opt-6.7b", 6.7e9, 32, 1),
    Model("opt-13b", 13e9, 16, 1),
    Model("opt-30b", 30e9, 8, 2),
)


def w2_cluster(model: Model, copies: int | None = None) -> Cluster:
    return cluster_of(
        {
            "nodes": [
                {
                    "name": "server",
                    "count": 4,
                    "devices": 4,
                    "device_bandwidth": DEVICE_BANDWIDTH,
                    "dram_bytes": 512e9,
                    "ssd_bytes": 2e12,
                    "ssd_bandwidth": SSD_BANDWIDTH,
                    "remote_bandwidth": NETWORK_BANDWIDTH,
                    "init_seconds": 0.1,
                }
            ],
            "functions": [
                {
                    "name": model.name,
                    "count": copies or model.copies,
                    "weight_bytes": model.weight_bytes,
                    "devices": model.devices,
                    "concurrency": 1,
                    "token_seconds": model.token_seconds,
                    "prompt_token_seconds": model.prompt_token_seconds,
                }
            ],
        },
        "W2",
    )


def lengths_of(name: str, data: Path | None) -> Lengths:
    """(prompt, output) tokens within the context of OPT, from the data set or as documented."""
    if data is None:
        return _documented(name)
    if name == "gsm8k":
        found = _gsm8k(data / "gsm8k_test.jsonl.gz")
    else:
        found = list(read_lengths(data / "sharegpt_8k_lengths_llama2.csv.gz"))
    return [_within_context(prompt, output) for prompt, output in found]


def _gsm8k(path: Path) -> list[tuple[int, int]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [
        (
            max(1, len(row["question"]) // TOKEN_CHARACTERS),
            max(1, len(row["answer"]) // TOKEN_CHARACTERS),
        )
        for row in rows
    ]


def _documented(name: str) -> Lengths:
    draw = random.Random(f"lengths {name}")
    columns = []
    for median, late in DOCUMENTED[name]:
        sigma = math.log(late / median) / 1.645
        columns.append(
            [
                max(1, int(draw.lognormvariate(math.log(median), sigma)))
                for _ in range(DRAWN_LENGTHS)
            ]
        )
    return [_within_context(*pair) for pair in zip(*columns, strict=True)]


def _within_context(prompt: int, output: int) -> tuple[int, int]:
    output = min(output, CONTEXT_TOKENS - 1)
    return min(prompt, CONTEXT_TOKENS - output), output


def mean_seconds(model: Model, lengths: Sequence[tuple[int, int]]) -> float:
    """How long a request runs on average."""
    prompts = sum(prompt for prompt, _ in lengths) / len(lengths)
    outputs = sum(output for _, output in lengths) / len(lengths)
    return prompts * model.prompt_token_seconds + outputs * model.token_seconds
