"""Functions with a requirements.txt on a real agent: real pip, real zygotes, real workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from harness.agent import AgentProcess, handler_archive
from harness.packages import (
    BROKEN_BACKEND,
    ENDLESS_BACKEND,
    pip_settings,
    write_sdist,
    write_wheel,
)
from harness.waiting import eventually, gone
from stoker.placement.records import FunctionRecord

BUILD_SECONDS = 120.0

SAYS_ITS_PACKAGE = """
import os, subprocess, widget

def handle(event, context):
    program = subprocess.run(["widget"], capture_output=True, check=True).stdout.decode().strip()
    return f"{widget.VERSION} {program} {os.getppid()}"
"""
SAYS_ITS_PARENT = "import os\ndef handle(event, context): return f'- - {os.getppid()}'\n"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packages")


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory, packages: Path) -> Iterator[AgentProcess]:
    running = AgentProcess(
        tmp_path_factory.mktemp("agent") / "state",
        pip_settings(packages) | {"AWS_SECRET_ACCESS_KEY": "never"},
    )
    running.ready()
    yield running
    running.close()


def deploy(
    agent: AgentProcess, name: str, source: str, requirements: str | None = None
) -> FunctionRecord:
    digest, payload = handler_archive(source, requirements)
    agent.bundles.put(digest, payload)
    function = FunctionRecord(name, "openfaas-fn", f"{name}:latest", code_digest=digest)
    agent.deploy(function)
    return function


def log_of(agent: AgentProcess, name: str) -> str:
    return agent.http("GET", f"/logs?function={name}.openfaas-fn").body.decode()


def test_two_versions_of_a_package_work_at_once_and_like_functions_share_a_zygote(
    agent: AgentProcess, packages: Path
) -> None:
    for version in ("1.0", "2.0"):
        write_wheel(packages, "widget", version)
    functions = [
        deploy(agent, "one", SAYS_ITS_PACKAGE, "widget==1.0\n"),
        deploy(agent, "two", SAYS_ITS_PACKAGE, "widget==2.0\n"),
        deploy(agent, "same", SAYS_ITS_PACKAGE, "# as the first\nWidget == 1.0\n"),
        deploy(agent, "plain", SAYS_ITS_PARENT, "orjson\n"),
    ]

    orders = []
    for number, function in enumerate(functions):
        orders.append(agent.assign(f"1-{number}", function))
        agent.instance(f"1-{number}", "serving", BUILD_SECONDS)
    answers = [agent.call(order.address).body.decode().split() for order in orders]

    assert [answer[:2] for answer in answers] == [["1.0"] * 2, ["2.0"] * 2, ["1.0"] * 2, ["-"] * 2]
    one, two, same, plain = (int(answer[2]) for answer in answers)
    assert one == same
    assert len({one, two, plain}) == 3
    # They are forks of the node's own zygote, which is all that the agent has started.
    # A compiler of some code may run beside it for a moment.
    eventually(
        lambda: [child.pid for child in psutil.Process(agent.process.pid).children()] == [plain]
    )
    assert {psutil.Process(pid).ppid() for pid in (one, two)} == {plain}
    assert "installing the packages that the code asks for" in log_of(agent, "one")
    assert "installing" not in log_of(agent, "same")
    assert len(list((agent.state / "environments").iterdir())) == 2
    assert "AWS_SECRET" not in psutil.Process(one).environ()
    for order in orders:
        agent.revoke(order)
        agent.gone(order.instance_id)


def test_the_next_start_is_parked_in_the_environment(agent: AgentProcess, packages: Path) -> None:
    write_wheel(packages, "widget", "1.0")
    function = deploy(agent, "again", SAYS_ITS_PACKAGE, "widget==1.0\n")
    answers = []
    for number in range(2):
        order = agent.assign(f"4-{number}", function)
        agent.instance(order.instance_id, "serving", BUILD_SECONDS)
        answers.append(agent.call(order.address).body.decode().split())
        agent.revoke(order)
        agent.gone(order.instance_id)
        eventually(lambda: "is ready for the next start" in log_of(agent, "again"), 30)

    assert answers[0][:2] == answers[1][:2] == ["1.0", "1.0"]
    assert answers[0][2] == answers[1][2]  # the environment's zygote lives as long as it is parked
    assert "took parked worker" in log_of(agent, "again")


def test_a_failing_build_shows_pips_lines_to_the_caller_and_in_the_log(
    agent: AgentProcess, packages: Path
) -> None:
    write_sdist(packages, "broken", "1.0", BROKEN_BACKEND)
    function = deploy(agent, "broken", SAYS_ITS_PARENT, "broken\n")
    order = agent.assign("2-0", function)
    answer = agent.call(order.address)
    agent.wait_for(lambda s: (i := s.instances.get("2-0")) and i.state == "failed", BUILD_SECONDS)

    failure = agent.view.snapshot().instances["2-0"].failure
    assert failure is not None
    assert (answer.status, answer.json()) == (502, {"error": failure})
    assert failure["code"] == "start_failed"
    assert "fatal error: widget.h: No such file or directory" in failure["cause"]
    assert failure["details"]["output"][-1] in log_of(agent, "broken")
    assert "fatal error: widget.h: No such file" in log_of(agent, "broken").partition("failed:")[0]
    agent.revoke(order)
    agent.gone("2-0")


def test_kill_9_of_the_agent_in_mid_build_leaves_nothing_and_the_next_one_builds(
    agent: AgentProcess, packages: Path, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    sdist = write_sdist(packages, "endless", "1.0", ENDLESS_BACKEND.format(begun=begun))
    function = deploy(agent, "endless", SAYS_ITS_PARENT, "endless\n")
    order = agent.assign("3-0", function)
    eventually(begun.exists, BUILD_SECONDS)
    pids = [int(pid) for pid in begun.read_text().split()]
    kept = {path.parent.name for path in (agent.state / "environments").glob("*/complete")}

    agent.kill()
    eventually(lambda: all(gone(pid) for pid in pids))
    agent.revoke(order)
    sdist.unlink()
    write_wheel(packages, "endless", "1.0")
    agent.start()
    agent.ready()
    assert {path.name for path in (agent.state / "environments").iterdir()} == kept

    order = agent.assign("3-1", function)
    agent.instance("3-1", "serving", BUILD_SECONDS)
    assert agent.stop() == 0
    agent.revoke(order)
