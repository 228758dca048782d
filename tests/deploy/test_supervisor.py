"""The supervisor over tiny programs, in a process of its own so that it may be killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from stoker.deploy.supervisor import describe_status, restart_delay_seconds, rotate_log

DRIVER = Path(__file__).parent / "supervised.py"
# Writes its process number when it starts, and stops when it is told to.
SLEEPER = """
import os, time
with open({pids!r}, "a") as f: f.write(f"{{os.getpid()}}\\n")
time.sleep(600)
"""
STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open({pids!r}, "a") as f: f.write(f"{{os.getpid()}}\\n")
time.sleep(600)
"""
# Leaves a grandchild in a session of its own, which no group signal reaches.
PARENT = """
import os, time
if os.fork() == 0:
    os.setsid()
with open({pids!r}, "a") as f: f.write(f"{{os.getpid()}}\\n")
time.sleep(600)
"""
NOTES_STOP = """
import os, signal, sys, time
def stop(*_):
    with open({order!r}, "a") as f: f.write("{name}\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
with open({pids!r}, "a") as f: f.write(f"{{os.getpid()}}\\n")
time.sleep(600)
"""
# Counts its starts in the memory file that it inherits as descriptor 9.
COUNTS_STARTS = """
import os, time
os.ftruncate(9, os.fstat(9).st_size + 1)
with open({starts!r}, "a") as f: f.write(f"{{os.fstat(9).st_size}}\\n")
with open({pids!r}, "a") as f: f.write(f"{{os.getpid()}}\\n")
time.sleep(600)
"""
CRASHES = "import sys; print('the disk is on fire', flush=True); sys.exit(3)"

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a supervisor over programs by name, and kills it with all it left at the end."""
    started: list[subprocess.Popen[str]] = []

    def begin(
        programs: Mapping[str, str], stop_seconds: float = 5.0, memory: bool = False
    ) -> subprocess.Popen[str]:
        setup = {
            "folder": str(tmp_path),
            "programs": programs,
            "stop_seconds": stop_seconds,
            "memory": memory,
        }
        process = subprocess.Popen(
            [sys.executable, str(DRIVER), json.dumps(setup)], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    for pid in pids(tmp_path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def pids(folder: Path) -> list[int]:
    file = folder / "pids"
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)  # other processes change this, and none of them can tell us


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_killed_child_is_started_again(start: Start, tmp_path: Path) -> None:
    start({"one": SLEEPER.format(pids=str(tmp_path / "pids"))})
    wait_for(lambda: len(pids(tmp_path)) == 1)

    os.kill(pids(tmp_path)[0], signal.SIGKILL)

    wait_for(lambda: len(pids(tmp_path)) == 2)
    assert not gone(pids(tmp_path)[1])


def test_what_a_dead_child_leaves_behind_is_killed_before_it_is_started_again(
    start: Start, tmp_path: Path
) -> None:
    start({"one": PARENT.format(pids=str(tmp_path / "pids"))})
    wait_for(lambda: len(pids(tmp_path)) == 2)
    first = pids(tmp_path)
    parent = next(pid for pid in first if psutil.Process(pid).ppid() not in first)

    os.kill(parent, signal.SIGKILL)

    wait_for(lambda: len(pids(tmp_path)) == 4)
    wait_for(lambda: all(gone(pid) for pid in first))


def test_each_start_of_a_child_inherits_the_same_memory(start: Start, tmp_path: Path) -> None:
    paths = {"pids": str(tmp_path / "pids"), "starts": str(tmp_path / "starts")}
    start({"one": COUNTS_STARTS.format(**paths)}, memory=True)
    wait_for(lambda: len(pids(tmp_path)) == 1)

    os.kill(pids(tmp_path)[0], signal.SIGKILL)

    wait_for(lambda: len(pids(tmp_path)) == 2)
    assert (tmp_path / "starts").read_text().split() == ["1", "2"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_leaves_no_process(start: Start, tmp_path: Path, number: int) -> None:
    supervisor = start({"one": PARENT.format(pids=str(tmp_path / "pids"))})
    wait_for(lambda: len(pids(tmp_path)) == 2)

    supervisor.send_signal(number)

    assert supervisor.wait(10) == 0
    assert all(gone(pid) for pid in pids(tmp_path))


def test_children_stop_one_after_another_in_the_order_given(start: Start, tmp_path: Path) -> None:
    order = tmp_path / "order"
    names = ["gateway", "placement", "agent"]
    paths = {"pids": str(tmp_path / "pids"), "order": str(order)}
    supervisor = start({name: NOTES_STOP.format(name=name, **paths) for name in names})
    wait_for(lambda: len(pids(tmp_path)) == 3)

    supervisor.terminate()

    assert supervisor.wait(10) == 0
    assert order.read_text().split() == names


def test_a_child_that_ignores_sigterm_is_killed_after_its_time(
    start: Start, tmp_path: Path
) -> None:
    programs = {"one": STUBBORN.format(pids=str(tmp_path / "pids"))}
    supervisor = start(programs, stop_seconds=0.3)
    wait_for(lambda: len(pids(tmp_path)) == 1)

    supervisor.terminate()

    assert supervisor.wait(10) == 0
    assert gone(pids(tmp_path)[0])
    assert supervisor.stdout is not None
    assert "one did not stop in time and was killed" in supervisor.stdout.read()


def test_a_second_stop_signal_ends_the_patience(start: Start, tmp_path: Path) -> None:
    programs = {"one": STUBBORN.format(pids=str(tmp_path / "pids"))}
    supervisor = start(programs, stop_seconds=60.0)
    wait_for(lambda: len(pids(tmp_path)) == 1)

    supervisor.send_signal(signal.SIGINT)
    time.sleep(0.2)  # two equal signals at once would be one
    supervisor.send_signal(signal.SIGINT)

    assert supervisor.wait(10) == 0
    assert gone(pids(tmp_path)[0])


def test_a_child_that_keeps_dying_stops_everything_and_its_log_is_named(
    start: Start, tmp_path: Path
) -> None:
    programs = {"good": SLEEPER.format(pids=str(tmp_path / "pids")), "bad": CRASHES}
    supervisor = start(programs)

    assert supervisor.wait(30) == 1

    assert supervisor.stdout is not None
    said = supervisor.stdout.read()
    assert "The process bad ended 5 times in a row" in said
    assert "exit status 3, saying 'the disk is on fire'" in said
    assert f"Read {tmp_path / 'bad.log'}." in said
    assert all(gone(pid) for pid in pids(tmp_path))


def test_a_killed_supervisor_leaves_no_child(start: Start, tmp_path: Path) -> None:
    supervisor = start({"one": STUBBORN.format(pids=str(tmp_path / "pids"))})
    wait_for(lambda: len(pids(tmp_path)) == 1)

    supervisor.kill()

    wait_for(lambda: gone(pids(tmp_path)[0]))


@pytest.mark.parametrize(
    ("deaths", "delay"), [(0, 0.1), (1, 0.1), (2, 0.4), (3, 1.6), (4, 5.0), (5, None), (9, None)]
)
def test_restarts_back_off_and_end(deaths: int, delay: float | None) -> None:
    assert restart_delay_seconds(deaths) == (delay if delay is None else pytest.approx(delay))


def test_a_status_is_told_in_words() -> None:
    assert describe_status(3 << 8) == "exit status 3"
    assert describe_status(9) == "signal SIGKILL"


def test_a_log_is_rotated_and_the_oldest_dropped(tmp_path: Path) -> None:
    log = tmp_path / "agent.log"
    for text in ("first", "second", "third"):
        log.write_text(text)
        rotate_log(log, kept=2)

    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == {"agent.log.1": "third", "agent.log.2": "second"}
