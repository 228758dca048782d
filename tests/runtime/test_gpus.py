from __future__ import annotations

import pytest

from stoker.runtime.gpus import Gpu, kind_of, largest_group


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L40S", "l40s"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx6000"),
        ("NVIDIA TITAN RTX", "titanrtx"),
        ("", "gpu"),
    ],
)
def test_functions_ask_for_a_gpu_by_the_model_in_its_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_a_node_announces_the_kind_that_it_has_most_of() -> None:
    gpus = [Gpu(name, f"GPU-{n}", 1) for n, name in enumerate(["Tesla T4", "A10", "NVIDIA A10"])]

    assert largest_group(gpus) == tuple(gpus[1:])
    assert largest_group(gpus[:2]) == tuple(gpus[:1])
    assert largest_group([]) == ()
