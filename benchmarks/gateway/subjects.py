"""What is measured: the null server itself, Stoker in front of it, and the peers.

Whatever listens on a subject's port runs on FRONT_CORE alone, and everything else on the other
cores: a subject's own workers, the null server, the load. What is counted is what one core of the
process that clients talk to can do.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from http_client import Failed
from install_peers import environment_of, reason_of
from serving import MARK, Launched, free_port, launched

from stoker.placement.records import (
    Assignment,
    CheckpointRef,
    FunctionRecord,
    InstanceRecord,
    LeaderRecord,
    NodeRecord,
    Scaling,
    encode,
)
from stoker.placement.stores import open_store

HERE = Path(__file__).resolve().parent
APPS = HERE / "peers"
READY_SECONDS_MAXIMUM = 120.0
POLL_SECONDS = 0.1
CONCURRENCY = 8192
LITELLM_KEY = f"sk-{secrets.token_hex(24)}"
CHAT = '{"model": "chat", "messages": [{"role": "user", "content": "Is it?"}]}'
_CORES = sorted(os.sched_getaffinity(0))
FRONT_CORE, OTHER_CORES = {_CORES[0]}, set(_CORES[1:]) or {_CORES[0]}


@dataclass(frozen=True)
class Running:
    """A subject that answers. `front` are the processes that listen on its port."""

    port: int
    path: str
    body: str
    headers: Mapping[str, str]
    front: tuple[psutil.Process, ...]

    def cpu_seconds(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self.front)

    def memory_bytes(self) -> int:
        """What the processes at the front hold; pages that several share are counted once."""
        return sum(process.memory_full_info().pss for process in self.front)


@dataclass(frozen=True)
class Subject:
    """`command(port, null_port, scratch)` launches it; requests go to `path`."""

    command: Callable[[int, int, Path], list[str]]
    path: str = "/"
    body: str = "{}"
    peer: str = ""
    variables: Callable[[int, Path], Mapping[str, str]] = lambda _port, _scratch: {}
    prepare: Callable[[int, Path], None] = lambda _null_port, _scratch: None


def _of(peer: str, program: str, *arguments: str) -> list[str]:
    return [str(environment_of(peer) / "bin" / program), *arguments]


def _store_url(scratch: Path) -> str:
    return f"sqlite://{scratch / 'store.sqlite'}"


def _gateway_variables(port: int, scratch: Path) -> dict[str, str]:
    return {
        "STOKER_STATE": str(scratch),
        "STOKER_STORE": _store_url(scratch),
        "STOKER_GATEWAY_BIND": f"127.0.0.1:{port}",
    }


def _deploy_null(null_port: int, scratch: Path) -> None:
    """A store in which the null server is an instance that serves, and the leader as well."""
    store, address = open_store(_store_url(scratch), "token"), f"127.0.0.1:{null_port}"
    scaling = Scaling(concurrency=CONCURRENCY)
    functions = [
        FunctionRecord("null", "openfaas-fn", "null", code_digest="0" * 64, scaling=scaling),
        FunctionRecord(
            "chat",
            "openfaas-fn",
            "chat",
            task="chat",
            checkpoint=CheckpointRef("file:///null", "0" * 64, 0, packed=False),
            scaling=scaling,
        ),
    ]
    store.put("/placement/leader", encode(LeaderRecord("leader", address, 1)))
    node = NodeRecord("node", address, 1, 0, 0, 8, zygote_ready=True)
    store.put(node.path, encode(node))
    for function in functions:
        store.put(function.path, encode(function))
        order = Assignment(f"{function.name}-1", function.key, 1, "node", address, 1, time.time())
        store.put(order.path, encode(order))
        serving = InstanceRecord(
            *(order.instance_id, function.key, 1, "node", address, "serving", 1, time.time())
        )
        store.put(serving.path, encode(serving))
    store.close()


_STOKER = Subject(
    lambda _port, _null, _scratch: [sys.executable, "-P", "-m", "stoker.gateway.main"],
    path="/function/null",
    variables=_gateway_variables,
    prepare=_deploy_null,
)

SUBJECTS: dict[str, Subject] = {
    "stoker": _STOKER,
    "stoker_chat": Subject(
        _STOKER.command, "/v1/chat/completions", CHAT, "", _gateway_variables, _deploy_null
    ),
    "litellm": Subject(
        lambda port, _null, scratch: _of(
            *("litellm", "litellm", "--config", str(scratch / "litellm.yaml")),
            *("--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"),
        ),
        path="/v1/chat/completions",
        body=CHAT,
        peer="litellm",
        prepare=lambda null_port, scratch: _write_litellm(null_port, scratch),
    ),
    "ray_serve": Subject(
        lambda port, _null, _scratch: _of(
            "ray_serve", "python", str(APPS / "ray_app.py"), str(port)
        ),
        peer="ray_serve",
    ),
    "litserve": Subject(
        lambda port, _null, _scratch: _of(
            "litserve", "python", str(APPS / "lit_app.py"), str(port)
        ),
        path="/predict",
        peer="litserve",
    ),
    "bentoml": Subject(
        lambda port, _null, _scratch: _of(
            *("bentoml", "bentoml", "serve", "bento_app:Null", "--working-dir", str(APPS)),
            *("--host", "127.0.0.1", "--port", str(port)),
        ),
        path="/null",
        peer="bentoml",
    ),
    "functions_framework": Subject(
        lambda port, _null, _scratch: _of(
            *("functions_framework", "gunicorn", "--bind", f"127.0.0.1:{port}"),
            *("--workers", "1", "--threads", "8", "--keep-alive", "60", "--chdir", str(APPS)),
            "functions_framework:create_app('null', 'functions_framework_app.py')",
        ),
        peer="functions_framework",
    ),
    "kserve": Subject(
        lambda port, _null, _scratch: _of(
            "kserve", "python", str(APPS / "kserve_app.py"), str(port)
        ),
        path="/v1/models/null:predict",
        body='{"instances": [[1]]}',
        peer="kserve",
    ),
}
PEERS = tuple(name for name, subject in SUBJECTS.items() if subject.peer)


def _write_litellm(null_port: int, scratch: Path) -> None:
    (scratch / "litellm.yaml").write_text(
        f"general_settings:\n  master_key: {LITELLM_KEY}\n"
        "model_list:\n"
        "  - model_name: chat\n"
        "    litellm_params:\n"
        "      model: openai/null\n"
        f"      api_base: http://127.0.0.1:{null_port}/v1\n"
        "      api_key: none\n"
    )


@contextlib.contextmanager
def null_server() -> Iterator[Running]:
    """The null server, to be asked directly. Raises Failed."""
    port, subject = free_port(), Subject(lambda *_: [])
    with launched([sys.executable, str(HERE / "null_server.py"), str(port)], {}) as own:
        _wait(own, lambda: _answers(port, subject, {}))
        pin(own.process.pid, OTHER_CORES)
        yield Running(port, subject.path, subject.body, {}, ())


@contextlib.contextmanager
def running(name: str, null_port: int, scratch: Path) -> Iterator[Running]:
    """The subject, from its first answer until the block ends. Raises Failed."""
    subject = SUBJECTS[name]
    if subject.peer and (reason := reason_of(subject.peer)):
        raise Failed(f"It does not install: {reason}")
    scratch.mkdir(parents=True)
    port = free_port()
    subject.prepare(null_port, scratch)
    command = subject.command(port, null_port, scratch)
    with launched(command, subject.variables(port, scratch)) as own:
        _wait(own, lambda: _answers(port, subject, _headers(name, scratch)))
        found = _headers(name, scratch)
        mark = psutil.Process(own.process.pid).environ()[MARK]
        yield Running(port, subject.path, subject.body, found, _pinned(mark, port))


def _wait(own: Launched, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_SECONDS_MAXIMUM
    while not holds():
        if own.process.poll() is not None:
            raise Failed(f"It ended with {own.process.returncode}: {own.last_words()}")
        if time.monotonic() > deadline:
            raise Failed(f"No answer within {READY_SECONDS_MAXIMUM:.0f} s: {own.last_words()}")
        # A server that starts has no way to tell a client that has not reached it yet.
        time.sleep(POLL_SECONDS)


def _headers(name: str, scratch: Path) -> Mapping[str, str]:
    if name == "litellm":
        return {"authorization": f"Bearer {LITELLM_KEY}"}
    password = scratch / "auth" / "password"
    if name == "stoker_chat" and password.exists():
        return {"authorization": f"Bearer {password.read_text().strip()}"}
    return {}


def _answers(port: int, subject: Subject, headers: Mapping[str, str]) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        typed = {"Content-Type": "application/json", **headers}
        connection.request("POST", subject.path, subject.body, typed)
        return connection.getresponse().status == 200
    return False


def _pinned(mark: str, port: int) -> tuple[psutil.Process, ...]:
    """Put whoever listens on the port on one core, and the rest of them on the others."""
    front = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) != mark:
                continue
            listens = any(
                found.status == psutil.CONN_LISTEN and found.laddr.port == port
                for found in process.net_connections(kind="tcp")
            )
            pin(process.pid, FRONT_CORE if listens else OTHER_CORES)
            if listens:
                front.append(process)
    return tuple(front)


def pin(pid: int, cores: set[int]) -> None:
    """Every thread of the process."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), cores)
