"""A real node agent in its own process, driven through a real store as the leader does it."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from harness import web
from stoker.placement.bundles import open_bundles
from stoker.placement.instance_token import instance_token
from stoker.placement.records import Assignment, FunctionRecord, InstanceRecord, NodeRecord, encode
from stoker.placement.stores import open_store
from stoker.placement.view import Snapshot, View

TOKEN = "cluster-token-of-the-tests"
NODE = "node-1"


class AgentProcess:
    """`python -m stoker.runtime.agent_main` with a SQLite store in `state`."""

    def __init__(self, state: Path, environment: Mapping[str, str] | None = None) -> None:
        (state / "auth").mkdir(parents=True, exist_ok=True)
        (state / "auth" / "cluster-token").write_text(TOKEN)
        self.state = state
        url = f"sqlite://{state}/store.sqlite"
        self.store = open_store(url, TOKEN)
        self.bundles = open_bundles(None, url, self.store)
        self.view = View(self.store)
        self._killed_address = ""
        self._assigned: dict[str, str] = {}
        self.variables = {
            **os.environ,
            "STOKER_STORE": url,
            "STOKER_STATE": str(state),
            "STOKER_NODE_ID": NODE,
            "STOKER_DRAM_BYTES": str(128 << 20),
            "STOKER_SSD_BYTES": str(256 << 20),
            "STOKER_INSTANCES_MAXIMUM": "5",
            "STOKER_CORES": "1",
            **(environment or {}),
        }
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "stoker.runtime.agent_main"], env=self.variables
        )

    def wait_for(self, holds: Callable[[Snapshot], object], seconds: float = 40.0) -> Snapshot:
        return self.view.wait_for(lambda snapshot: bool(holds(snapshot)), seconds)

    def ready(self) -> NodeRecord:
        """The record of the running process once its zygote is ready."""
        snapshot = self.wait_for(
            # A killed process's record outlives it by a session's timeout.
            lambda s: (
                (node := s.nodes.get(NODE))
                and node.agent_address != self._killed_address
                and node.zygote_ready
            )
        )
        return snapshot.nodes[NODE]

    def deploy(self, function: FunctionRecord) -> None:
        self.store.put(function.path, encode(function))

    def assign(
        self,
        instance_id: str,
        function: FunctionRecord,
        *,
        address: str = "",
        epoch: int = 1,
        devices: tuple[int, ...] = (),
    ) -> Assignment:
        address = address or self.view.snapshot().nodes[NODE].spare_addresses[0]
        order = Assignment(
            *(instance_id, function.key, function.generation, NODE, address, epoch, time.time()),
            devices=devices,
        )
        self.store.put(order.path, encode(order))
        self._assigned[address] = instance_id
        return order

    def revoke(self, order: Assignment) -> None:
        self.store.delete(order.path)

    def instance(self, instance_id: str, state: str, seconds: float = 40.0) -> InstanceRecord:
        """The instance's record once it is in `state`."""
        snapshot = self.wait_for(
            lambda s: (i := s.instances.get(instance_id)) and i.state in (state, "failed"), seconds
        )
        record = snapshot.instances[instance_id]
        assert record.state == state, record
        return record

    def gone(self, instance_id: str) -> None:
        self.wait_for(lambda s: instance_id not in s.instances)

    def call(self, address: str, body: object = "") -> web.Answer:
        """Whoever was assigned to the address last."""
        token = instance_token(TOKEN, self._assigned[address])
        return web.call("POST", f"http://{address}/", body, {"X-Stoker-Token": token})

    def http(self, method: str, path: str, body: bytes | None = None) -> web.Answer:
        address = self.view.snapshot().nodes[NODE].agent_address
        headers = web.signed(TOKEN, method, path, body)
        return web.call(method, f"http://{address}{path}", body, headers)

    def log(self, function: str) -> str:
        return self.http("GET", f"/logs?function={function}.openfaas-fn").body.decode()

    def kill(self) -> None:
        """As kill -9 does."""
        if (node := self.view.snapshot().nodes.get(NODE)) is not None:
            self._killed_address = node.agent_address
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        self.view.close()
        self.store.close()


def handler_archive(source: str, requirements: str | None = None) -> tuple[str, bytes]:
    """Digest and tar.gz of a folder with this handler.py, and requirements.txt if any."""
    files = {"handler.py": source}
    if requirements is not None:
        files["requirements.txt"] = requirements
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    payload = gzip.compress(buffer.getvalue(), mtime=0)
    return hashlib.sha256(payload).hexdigest(), payload
