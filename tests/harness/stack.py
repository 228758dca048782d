"""A whole Stoker on this machine, started as a user starts it: `stoker up` in its own process."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import web

STOKER = str(Path(sys.executable).parent / "stoker")
UP_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 45.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(holds: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    """Poll from outside, as a user would; the value that held, or a failure naming `what`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := holds():
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")


@dataclass
class Stack:
    """`stoker up` on `state`; `environment` is what its user would export."""

    state: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ("--dram-bytes", "1GiB")
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def password(self) -> str:
        return (self.state / "auth" / "password").read_text().strip()

    @property
    def variables(self) -> dict[str, str]:
        client = {"STOKER_STATE": str(self.state), "STOKER_GATEWAY": self.url}
        return {**os.environ, **self.environment, **client}

    def start(self) -> Stack:
        self.state.parent.mkdir(parents=True, exist_ok=True)
        with (self.state.parent / f"{self.state.name}-up.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(STOKER, "up", "--state", str(self.state), "--port", str(self.port)),
                    *self.arguments,
                ],
                env=self.variables,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_until(self.is_ready, "`stoker up` is ready", UP_SECONDS_MAX)
        return self

    def is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"`stoker up` ended:\n{self.up_log()}"
        try:
            nodes = self.system("GET", "/system/nodes")
        except (OSError, FileNotFoundError):
            return False
        return nodes.status == 200 and any(n["zygote_ready"] for n in nodes.json())

    def up_log(self) -> str:
        return (self.state.parent / f"{self.state.name}-up.log").read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS_MAX)

    def descendants(self) -> list[int]:
        """Every live process whose environment names this state directory."""
        mark = f"STOKER_STATE={self.state}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found

    def process_of(self, module: str) -> int:
        """The pid of the child that runs `python -m <module>`, the oldest if it forked."""
        for pid in sorted(self.descendants()):
            try:
                arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if module.encode() in arguments:
                return pid
        raise AssertionError(f"no process runs {module}")

    def system(self, method: str, path: str, body: Any = None) -> web.Answer:
        json_wanted = {"Accept": "application/json"}
        return web.call(method, self.url + path, body, web.basic(self.password) | json_wanted)

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A `stoker` command line, as a user types it."""
        return subprocess.run(
            [STOKER, *arguments],
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=120,
            check=check,
        )

    def deploy(self, name: str, annotations: Mapping[str, str], **fields: Any) -> web.Answer:
        body = {"service": name, "image": f"{name}:latest", "annotations": dict(annotations)}
        answer = self.system("PUT", "/system/functions", body | fields)
        if answer.status == 404:
            answer = self.system("POST", "/system/functions", body | fields)
        return answer

    def deploy_code(
        self, folder: Path, name: str, handler: str, annotations: Mapping[str, str] | None = None
    ) -> None:
        """Build and deploy a function from the text of its handler.py."""
        code = folder / name
        code.mkdir(parents=True, exist_ok=True)
        (code / "handler.py").write_text(handler)
        function = {
            "lang": "python3-stoker",
            "handler": f"./{name}",
            "image": f"stoker/{name}:latest",
            "annotations": dict(annotations or {}),
        }
        provider = {"name": "openfaas"}
        spec = {"version": "1.0", "provider": provider, "functions": {name: function}}
        (folder / f"{name}.yaml").write_text(json.dumps(spec))
        self.run("deploy", "-f", str(folder / f"{name}.yaml"))

    def call(self, name: str, body: bytes = b"x") -> web.Answer:
        headers = {"Accept": "application/json"}
        return web.call("POST", f"{self.url}/function/{name}", body, headers)

    def remove(self, name: str) -> None:
        self.system("DELETE", "/system/functions", {"functionName": name})
        wait_until(lambda: not self.instances(name), f"{name} has no instance")

    def instances(self, function: str) -> list[dict[str, Any]]:
        listed = self.system("GET", "/system/instances").json()
        return [i for i in listed if re.fullmatch(rf"{function}(\..*)?", i["function"])]

    def scale_to_zero(self, function: str) -> None:
        body = {"serviceName": function, "replicas": 0}
        assert self.system("POST", f"/system/scale-function/{function}", body).status == 202
        wait_until(lambda: not self.instances(function), f"{function} has no instance")

    def chat(self, function: str, text: str, **fields: Any) -> web.Answer:
        body = {"model": function, "messages": [{"role": "user", "content": text}]} | fields
        return web.call("POST", f"{self.url}/v1/chat/completions", body, web.bearer(self.password))
