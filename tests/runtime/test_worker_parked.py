"""Real workers that are made ready ahead of their start: models, adapters, code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness import tiny_model
from harness.adapters import write_adapter
from harness.functions import write_files
from harness.waiting import eventually, gone
from harness.workers import (
    ParkedProcess,
    Resident,
    WorkerProcess,
    ZygoteProcess,
    resident,
    sandbox_levels,
    worker,
)
from stoker.native import Pool
from stoker.placement.records import FunctionRecord, Scaling
from stoker.placement.resources import Limits
from stoker.runtime import cgroup_trees
from stoker.runtime.cgroups import Group

# PEFT itself asks for what transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

CHAT = FunctionRecord("chat", "ns", "image", task="chat", scaling=Scaling(concurrency=2))
BODY = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 12}
CODE = FunctionRecord("code", "ns", "image", generation=3, environment={"SAID": "deployed"})
HANDLER = """
import os, random, threading, uuid
MADE = {"pid": os.getpid(), "random": random.random(), "said": os.environ["SAID"]}
STATUS = open("/proc/self/status").read()
CWD, THREAD = os.getcwd(), threading.current_thread() is threading.main_thread()
print("imported", flush=True)
def handle(event, context):
    print("called", flush=True)
    return MADE | {"status": STATUS, "cwd": CWD, "main": THREAD, "host": context.hostname,
        "port": os.environ["PORT"], "portb": os.environb[b"PORT"].decode()}
"""


@pytest.fixture
def base(tmp_path: Path) -> Resident:
    made = resident(tiny_model.write_llama(tmp_path / "llama"), Pool(64 << 20), tmp_path)
    made.read()
    return made


def text_of(running: WorkerProcess) -> str:
    status, payload, _ = running.call("/v1/chat/completions", BODY)
    assert status == 200, (payload, running.log())
    text: str = json.loads(payload)["choices"][0]["message"]["content"]
    return text


def test_a_model_that_has_run_over_zeros_answers_as_one_that_was_forked(
    zygote: ZygoteProcess, base: Resident, tmp_path: Path
) -> None:
    function = replace(CHAT, max_context=150)
    with worker(zygote, function, tmp_path / "first", checkpoint=base) as running:
        text = text_of(running)
        assert not running.status().from_template
    parked = ParkedProcess(zygote, function, tmp_path / "second", checkpoint=base)
    assert parked.said is not None
    assert (parked.said.event, parked.said.error) == ("parked", None)
    assert 0 < parked.said.private_bytes < 1 << 30
    with worker(zygote, function, tmp_path / "second", checkpoint=base, parked=parked) as running:
        assert text_of(running) == text
        assert running.status().from_template


def test_a_model_that_is_parked_takes_its_adapter(
    zygote: ZygoteProcess, base: Resident, tmp_path: Path
) -> None:
    adapters = []
    for seed, dtype in enumerate((torch.float32, torch.bfloat16)):  # the second must be cast
        folder = write_adapter(tmp_path / "llama", tmp_path / f"a{seed}", dtype, seed=seed)
        adapters.append(resident(folder, base.pool, tmp_path))
    for adapter in adapters:
        adapter.read()
    function = replace(CHAT, max_context=151)

    def answers(parks: bool) -> list[str]:
        texts = []
        for number, adapter in enumerate(adapters):
            folder = tmp_path / f"{parks}-{number}"
            given = {"checkpoint": base, "adapter": adapter}
            parked = ParkedProcess(zygote, function, folder, **given) if parks else None
            with worker(zygote, function, folder, parked=parked, **given) as running:
                texts.append(text_of(running))
                assert running.status().from_template == parks
        return texts

    function_texts = answers(parks=False)
    assert answers(parks=True) == function_texts
    assert len(set(function_texts)) == 2


def test_the_files_of_an_adapter_may_be_fetched_anew_while_it_is_parked(
    zygote: ZygoteProcess, base: Resident, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "llama", tmp_path / "adapter", seed=1)
    adapter = resident(folder, base.pool, tmp_path)
    adapter.read()
    given = {"checkpoint": base, "adapter": adapter}
    parked = ParkedProcess(zygote, CHAT, tmp_path / "work", **given)
    folder.rename(tmp_path / "evicted")
    with worker(zygote, CHAT, tmp_path / "work", parked=parked, **given) as running:
        assert text_of(running)


def test_code_is_imported_ahead_as_in_a_worker_but_for_what_a_start_tells(
    zygote: ZygoteProcess, tmp_path: Path
) -> None:
    code = write_files(tmp_path / "code", {"handler.py": HANDLER})
    parked = ParkedProcess(zygote, CODE, tmp_path / "parked", code_dir=code)
    assert parked.said is not None
    assert parked.said.event == "parked", parked.log()
    assert parked.log() == "imported\n"
    given = {"code_dir": code, "instance_id": "i-7"}
    with worker(zygote, CODE, tmp_path / "parked", parked=parked, **given) as running:
        found = json.loads(running.call("/")[1])
        log, port, pid = running.log(), str(running.port), running.pid
    with worker(zygote, CODE, tmp_path / "forked", **given) as running:
        forked = json.loads(running.call("/")[1])

    assert (found["port"], found["portb"], found["host"]) == (port, port, "i-7")
    assert (found["pid"], found["said"]) == (pid, "deployed")
    assert log == "called\n"
    assert (found["cwd"], found["main"]) == (forked["cwd"], forked["main"])
    assert found["random"] != forked["random"]
    # User code was held when it was imported.
    assert "NoNewPrivs:\t1" in found["status"]
    assert f"CapEff:\t{0:016}" in found["status"]
    assert "seccomp" not in sandbox_levels() or "Seccomp:\t2" in found["status"]


@pytest.mark.parametrize(
    ("files", "answer"),
    [
        (
            {
                "main.py": "import functions_framework\n"
                "@functions_framework.http\n"
                "def hello(request): return 'from ' + request.path\n"
            },
            b"from /x",
        ),
        (
            {
                "func.py": "class Function:\n"
                "    def start(self, cfg): self.port = cfg['PORT']\n"
                "    async def handle(self, scope, receive, send):\n"
                "        await send({'type': 'http.response.start', 'status': 200})\n"
                "        await send({'type': 'http.response.body', 'body': self.port.encode()})\n"
                "def new(): return Function()\n"
            },
            None,
        ),
    ],
    ids=["functions-framework", "knative"],
)
def test_the_other_kinds_of_code_are_parked_too(
    zygote: ZygoteProcess, tmp_path: Path, files: dict[str, str], answer: bytes | None
) -> None:
    code = write_files(tmp_path / "code", files)
    parked = ParkedProcess(zygote, CODE, tmp_path / "work", code_dir=code)
    assert parked.said is not None
    assert parked.said.event == "parked", (parked.said, parked.log())
    with worker(zygote, CODE, tmp_path / "work", code_dir=code, parked=parked) as running:
        assert running.call("/x")[1] == (answer or str(running.port).encode())


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("PORT = os.environ.get('PORT', '8080')", "asks for PORT"),
        ("ADDRESS = os.environb.get(b'LISTEN_ADDRESS')", "asks for PORT or LISTEN_ADDRESS"),
        ("PORT = os.environ['PORT']", "KeyError: 'PORT'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_code_that_needs_a_start_to_be_imported_is_not_parked(
    zygote: ZygoteProcess, tmp_path: Path, line: str, told: str
) -> None:
    text = f"import os\n{line}\ndef handle(event, context): return 'called'\n"
    code = write_files(tmp_path / "code", {"handler.py": text})
    parked = ParkedProcess(zygote, CODE, tmp_path / "work", code_dir=code)
    said = parked.said
    parked.end()

    assert said is not None
    assert said.event == "failed"
    assert told in str(said.error)


def test_a_port_that_the_function_is_deployed_with_is_its_own(
    zygote: ZygoteProcess, tmp_path: Path
) -> None:
    function = replace(CODE, environment={"PORT": "99"})
    text = "import os\nPORT = os.environ['PORT']\ndef handle(event, context): return PORT\n"
    code = write_files(tmp_path / "code", {"handler.py": text})
    parked = ParkedProcess(zygote, function, tmp_path / "work", code_dir=code)
    with worker(zygote, function, tmp_path / "work", code_dir=code, parked=parked) as running:
        assert running.call("/")[1] == b"99"


def test_one_that_ends_at_import_says_nothing(zygote: ZygoteProcess, tmp_path: Path) -> None:
    code = write_files(tmp_path / "code", {"handler.py": "import os\nos._exit(3)\n"})
    parked = ParkedProcess(zygote, CODE, tmp_path / "work", code_dir=code)
    assert parked.said is None
    parked.end()


def test_without_a_start_it_ends_with_its_socket(zygote: ZygoteProcess, tmp_path: Path) -> None:
    code = write_files(tmp_path / "code", {"handler.py": "def handle(e, c): return 'x'\n"})
    parked = ParkedProcess(zygote, CODE, tmp_path / "work", code_dir=code)
    parked.end()
    assert not Path(f"/proc/{parked.pid}").exists()


def test_all_its_threads_are_in_the_sandbox_and_the_groups_before_user_code_runs(
    zygote: ZygoteProcess, base: Resident, tmp_path: Path
) -> None:
    groups = cgroup_trees.find(claim=False)
    group = groups.create("8-parked", Limits())
    text = "def handle(event, context): return open('/proc/self/cgroup').read()\n"
    code = write_files(
        tmp_path / "code", {"handler.py": "GROUPS = open('/proc/self/cgroup').read()\n" + text}
    )
    joined = {"groups": tuple(group.join_paths)}
    model = ParkedProcess(zygote, CHAT, tmp_path / "model", checkpoint=base, **joined)
    imported = ParkedProcess(zygote, CODE, tmp_path / "work", code_dir=code, **joined)
    held = [is_held(process.pid, group) for process in (model, imported)]
    for process in (model, imported):
        process.end()
    group.remove()
    assert held == [True, True]


def is_held(pid: int, group: Group) -> bool:
    """Whether every thread is in every group; each must be in the sandbox in any case."""
    threads = list(Path(f"/proc/{pid}/task").iterdir())
    assert len(threads) > 1
    for thread in threads:
        status = (thread / "status").read_text()
        assert "NoNewPrivs:\t1" in status
        assert f"CapEff:\t{0:016}" in status
        assert "seccomp" not in sandbox_levels() or "Seccomp:\t2" in status
    inside: Sequence[str] = [(thread / "cgroup").read_text() for thread in threads]
    return all(folder.name in text for folder in group.folders for text in inside)


def test_none_outlives_the_zygote(base: Resident, tmp_path: Path) -> None:
    zygote = ZygoteProcess()
    parked = ParkedProcess(zygote, CHAT, tmp_path / "work", checkpoint=base)
    zygote.close()
    eventually(lambda: gone(parked.pid), seconds=5)
    parked.control.close()


def test_a_checkpoint_without_a_template_is_refused_and_the_zygote_lives(
    zygote: ZygoteProcess, base: Resident, tmp_path: Path
) -> None:
    broken = replace(base, start=replace(base.start, digest="broken", files_dir=str(tmp_path)))
    for _ in range(2):
        with pytest.raises(AssertionError, match="Expected to make a template"):
            ParkedProcess(zygote, CHAT, tmp_path / "work", checkpoint=broken)
    with worker(zygote, CHAT, tmp_path / "first", checkpoint=base) as running:
        assert text_of(running)
