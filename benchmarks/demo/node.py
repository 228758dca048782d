"""`stoker up` in a process of its own, put into the states that the demo measures."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stoker.gateway.cli.client import Access, GatewayClient
from stoker.gateway.cli.server_timing import (
    decode_event,
    delta_text,
    parse_server_timing,
    sse_data,
)

STOKER = (sys.executable, "-P", "-m", "stoker.deploy.main")
READY_SECONDS = 90.0
WAIT_SECONDS = 120.0
SETTLE_SECONDS = 2.0
# The default pool is a quarter of the memory; this one is in place before the first sample.
DRAM_BYTES = "1GiB"


@dataclass(frozen=True, slots=True)
class FirstToken:
    """Milliseconds from the request to the first content, the stages of them, and the text."""

    ttft_ms: float
    stages_ms: Mapping[str, float]
    text: str


class Node:
    """One Stoker on `state`, from `start` to `stop`."""

    def __init__(self, state: Path, environment: Mapping[str, str]) -> None:
        self.state = state
        self.port = _free_port()
        self._environment = {
            **os.environ,
            **environment,
            # What is shown and measured are starts from each tier.
            "STOKER_PREFETCH": "off",
            "STOKER_STATE": str(state),
            "STOKER_GATEWAY": f"http://127.0.0.1:{self.port}",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def command(self, *arguments: str) -> None:
        """Run a `stoker` command line as a user would; CalledProcessError if it fails."""
        subprocess.run([*STOKER, *arguments], env=self._environment, check=True)

    def start(self) -> None:
        """Start, and return when a node is ready and the machine has settled."""
        log = self.state.with_name("up.log")
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [
                    *(*STOKER, "up", "--state", str(self.state), "--port", str(self.port)),
                    *("--dram-bytes", DRAM_BYTES),
                ],
                env=self._environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        wait_for(self._is_ready, READY_SECONDS, f"`stoker up` to be ready, see {log}")
        # What is measured is a start from this state, not the last moments of the node's own.
        time.sleep(SETTLE_SECONDS)

    def stop(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(45)
        except subprocess.TimeoutExpired:
            # The kernel then kills its children, and they theirs.
            process.kill()
            process.wait()

    def empty_everything(self) -> None:
        """Leave only the remote copy: nothing in host memory, nothing on the SSD."""
        self.stop()
        shutil.rmtree(self.state / "ssd", ignore_errors=True)
        self.start()

    def empty_memory(self, weight_bytes: int) -> None:
        """Leave the SSD copy, once all of it was written there."""
        wait_for(
            lambda: self._ssd_bytes() >= weight_bytes,
            WAIT_SECONDS,
            "the SSD tier to hold the whole checkpoint",
        )
        self.stop()
        self.start()

    def stop_instances(self, function: str) -> None:
        """Scale to zero, and wait until no process serves the function."""
        self.command("scale", function, "0")
        prefix = f"{function}."
        wait_for(
            lambda: not any(i["function"].startswith(prefix) for i in self.instances()),
            WAIT_SECONDS,
            f"every instance of {function} to be gone",
        )

    def instances(self) -> Sequence[Mapping[str, Any]]:
        found: Sequence[Mapping[str, Any]] = self._client().call("GET", "/system/instances")
        return found

    def chat(
        self, function: str, prompt: str, tokens: int, on_text: Callable[[str], None]
    ) -> FirstToken:
        """Stream one answer as an OpenAI client does, and time its first content."""
        body = json.dumps(
            {
                "model": function,
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": tokens,
                "temperature": 0,
                "stream": True,
            }
        )
        headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {self._password()}",
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_SECONDS)
        with contextlib.closing(connection):
            connection.connect()
            began = time.perf_counter()
            connection.request("POST", "/v1/chat/completions", body, headers)
            response = connection.getresponse()
            if response.status != 200:
                sys.exit(f"The gateway answered {response.status}: {response.read().decode()}")
            first: float | None = None
            words: list[str] = []
            for data in sse_data(iter(response.readline, b"")):
                event = decode_event(data) or {}
                if "error" in event:
                    sys.exit(f"The stream ended with an error: {event['error']}")
                text = delta_text(event)
                if text and first is None:
                    first = time.perf_counter()
                if text:
                    words.append(text)
                    on_text(text)
            stages = parse_server_timing(response.headers.get("Server-Timing", ""))
        if first is None:
            sys.exit("The stream ended without any content.")
        return FirstToken((first - began) * 1000, stages, "".join(words))

    def _is_ready(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            sys.exit(f"`stoker up` ended:\n{self.state.with_name('up.log').read_text()}")
        if not (self.state / "auth" / "password").exists():
            return False
        with contextlib.suppress(Exception):
            nodes = self._client().call("GET", "/system/nodes")
            return any(node["zygote_ready"] for node in nodes)
        return False

    def _ssd_bytes(self) -> int:
        nodes = self._client().call("GET", "/system/nodes")
        return sum(int(node["ssd_resident_bytes"]) for node in nodes)

    def _password(self) -> str:
        return (self.state / "auth" / "password").read_text().strip()

    def _client(self) -> GatewayClient:
        return GatewayClient(Access(f"http://127.0.0.1:{self.port}", self._password()))


def wait_for(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll from outside, as a user would; exit when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            sys.exit(f"Waited {seconds:.0f} s in vain for {what}.")
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
