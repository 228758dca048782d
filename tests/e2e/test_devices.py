"""Functions that ask for GPUs, on a node whose driver is a library in software."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.nvml import compile_nvml
from harness.stack import Stack

SAYS_ITS_DEVICES = """
import os

def handle(event, context):
    return os.environ["CUDA_VISIBLE_DEVICES"]
"""


@pytest.fixture(scope="module")
def gpu_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    driver = compile_nvml(tmp_path_factory.mktemp("driver"), "NVIDIA A10", "NVIDIA A10")
    paths = f"{driver}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    variables = {"LD_LIBRARY_PATH": paths, "STOKER_ZONE": "rack-7"}
    running = Stack(tmp_path_factory.mktemp("gpus") / "state", variables, ("--dram-bytes", "64MiB"))
    yield running.start()
    running.stop()


def test_instances_are_given_devices_that_no_other_one_has(
    gpu_stack: Stack, tmp_path: Path
) -> None:
    (node,) = gpu_stack.system("GET", "/system/nodes").json()
    assert (node["zone"], node["device_kind"], node["device_count"]) == ("rack-7", "a10", 2)

    for name in ("one", "other"):
        gpu_stack.deploy_code(tmp_path, name, SAYS_ITS_DEVICES, {"stoker/devices": "h100:2, a10:1"})
    given = {gpu_stack.call(name).body.decode() for name in ("one", "other")}

    assert given == {"GPU-0", "GPU-1"}
    for name in ("one", "other"):
        gpu_stack.remove(name)


def test_who_asks_for_what_nobody_has_is_told_what_the_nodes_have(
    gpu_stack: Stack, tmp_path: Path
) -> None:
    gpu_stack.deploy_code(tmp_path, "large", SAYS_ITS_DEVICES, {"stoker/devices": "h100:1, a10:4"})

    answer = gpu_stack.call("large")

    assert answer.status == 503
    assert "2 of its 2 devices are free, 4 are needed" in answer.body.decode()
    gpu_stack.remove("large")
    gpu_stack.deploy_code(tmp_path, "apart", SAYS_ITS_DEVICES, {"stoker/devices": "h100:1"})
    answer = gpu_stack.call("apart")
    assert answer.status == 503
    assert "it has 2 of kind a10, and h100:1 is asked for" in answer.body.decode()
    gpu_stack.remove("apart")


def test_a_model_asks_for_no_device_that_its_engine_does_not_use(gpu_stack: Stack) -> None:
    annotations = {"stoker/model": "s3://models/m", "stoker/devices": "a10"}

    answer = gpu_stack.deploy("model", annotations)

    assert answer.status == 400
    assert "computes on the CPU in this release" in answer.body.decode()
