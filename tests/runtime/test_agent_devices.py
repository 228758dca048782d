"""Zone and GPUs of a real agent, whose driver is a library in software, and who may use them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psutil
import pytest

from harness.agent import NODE, AgentProcess, handler_archive
from harness.nvml import compile_nvml
from harness.waiting import eventually
from stoker.placement.records import DeviceNeed, FunctionRecord

SAYS_ITS_DEVICES = """
import os
SEEN = os.environ["CUDA_VISIBLE_DEVICES"]

def handle(event, context):
    return f"{SEEN} {os.environ['CUDA_VISIBLE_DEVICES']}"
"""

SLOW_TO_END = """
import os, time

def handle(event, context):
    if event.body:
        print("busy", flush=True)
        time.sleep(float(event.body))
    return str(os.getpid())
"""


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    driver = tmp_path_factory.mktemp("driver")
    compile_nvml(driver, "Tesla T4", "NVIDIA A10", "NVIDIA A10")
    paths = f"{driver}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    running = AgentProcess(
        tmp_path_factory.mktemp("agent") / "state",
        {"LD_LIBRARY_PATH": paths, "STOKER_ZONE": "rack-7"},
    )
    running.ready()
    yield running
    running.close()


def deploy(
    agent: AgentProcess, name: str, source: str = SAYS_ITS_DEVICES, **fields: object
) -> FunctionRecord:
    digest, payload = handler_archive(source)
    agent.bundles.put(digest, payload)
    function = FunctionRecord(name, "openfaas-fn", f"{name}:latest", code_digest=digest)
    function = replace(function, **fields)  # type: ignore[arg-type]
    agent.deploy(function)
    return function


def test_a_node_announces_its_zone_and_the_devices_that_instances_may_be_given(
    agent: AgentProcess,
) -> None:
    record = agent.view.snapshot().nodes[NODE]

    assert record.zone == "rack-7"
    assert (record.device_kind, record.device_count, record.device_bytes) == ("a10", 2, 24 << 30)


def test_an_instance_sees_the_devices_that_it_was_given_and_no_other(agent: AgentProcess) -> None:
    gpu = deploy(agent, "gpu", devices=(DeviceNeed("a10", 1),))
    # What a function says of itself does not bring it the devices of others.
    greedy = deploy(agent, "greedy", environment={"CUDA_VISIBLE_DEVICES": "0,1,2"})

    answers = []
    for number, (function, devices) in enumerate([(gpu, (1,)), (gpu, (0, 1)), (greedy, ())]):
        order = agent.assign(f"1-{number}", function, devices=devices)
        answers.append(agent.call(order.address).body.decode())
        agent.instance(order.instance_id, "serving")
        agent.revoke(order)
        agent.gone(order.instance_id)

    assert answers == ["GPU-2 GPU-2", "GPU-1,GPU-2 GPU-1,GPU-2", " "]


def test_devices_change_hands_only_when_the_process_that_had_them_is_gone(
    agent: AgentProcess,
) -> None:
    first = deploy(agent, "first", SLOW_TO_END, devices=(DeviceNeed("a10", 1),))
    second = deploy(agent, "second", devices=(DeviceNeed("a10", 2),))
    held = agent.assign("2-0", first, devices=(1,))
    pid = int(agent.call(held.address).body)
    with ThreadPoolExecutor() as threads:
        slow = threads.submit(agent.call, held.address, b"2.0")
        eventually(lambda: agent.log("first").count("busy") == 1)
        agent.revoke(held)
        taker = agent.assign("2-1", second, devices=(0, 1))
        eventually(lambda: "waits for its devices" in agent.log("second"))
        assert psutil.pid_exists(pid)
        # Its caller waits in the socket's backlog meanwhile.
        assert agent.call(taker.address).body == b"GPU-1,GPU-2 GPU-1,GPU-2"
        assert slow.result().status == 200
    assert not psutil.pid_exists(pid)
    agent.revoke(taker)
    agent.gone("2-1")


def test_a_device_that_the_node_does_not_have_is_refused_with_both_numbers(
    agent: AgentProcess,
) -> None:
    function = deploy(agent, "late", devices=(DeviceNeed("a10", 1),))
    order = agent.assign("1-9", function, devices=(5,))
    agent.wait_for(lambda s: (i := s.instances.get("1-9")) and i.state == "failed")

    failure = agent.view.snapshot().instances["1-9"].failure
    assert failure is not None
    assert failure["cause"] == f"Expected device 5 on node {NODE}, found 2 devices."
    agent.revoke(order)
    agent.gone("1-9")
