"""A cluster as its operator starts it by hand: `stoker placement`, `stoker node`, `stoker gateway`
on a real ensemble. Each process can be killed, stopped, cut off from ZooKeeper and lied to about
the time.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import struct
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import web
from harness.judge import Verdict, judge
from harness.namespaces import Namespaces
from harness.proxy import Proxy
from harness.stack import STOKER, wait_until
from harness.zookeeper import ZooKeeperEnsemble, free_port
from harness.zookeeper_log import committed
from stoker.placement.main import EPOCH_PATH
from stoker.placement.records import LeaderRecord, decode
from stoker.placement.view import LEADER_PATH
from stoker.placement.zookeeper_store import ZooKeeperStore

CHROOT = "/prod/stoker"
READY_SECONDS_MAX = 120.0
STOP_SECONDS_MAX = 25.0
CODE = {
    # What the faults are told by: one that answers, one that streams a number each 0.1 s.
    "warm": 'def handle(event, context):\n    return "ok"\n',
    "stream": (
        "import time\n\n\ndef handle(event, context):\n"
        "    for number in range(int(event.body)):\n"
        '        yield f"{number}\\n"\n        time.sleep(0.1)\n'
    ),
}


@dataclass
class Process:
    """One process of the cluster, and its own ways to the servers of ZooKeeper."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    prefix: tuple[str, ...] = ()
    ways: list[Proxy] = field(default_factory=list)
    popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                [*self.prefix, STOKER, *self.arguments],
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def kill(self) -> None:
        assert self.popen is not None
        self.popen.kill()
        self.popen.wait()

    def suspend(self) -> None:
        assert self.popen is not None
        self.popen.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.popen is not None
        self.popen.send_signal(signal.SIGCONT)

    def cut(self) -> None:
        for way in self.ways:
            way.cut()

    def restore(self) -> None:
        for way in self.ways:
            way.restore()

    def shift_clock(self, seconds: float) -> None:
        # In place: a process that looks at a file while it is cut to nothing dies of SIGBUS.
        clock = self.folder / "clock"
        clock.touch()
        with clock.open("r+b", buffering=0) as file:
            file.write(struct.pack("d", seconds))

    def stop(self) -> None:
        if self.popen is not None:
            self.resume()
            self.popen.terminate()
            try:
                self.popen.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                os.killpg(self.popen.pid, signal.SIGKILL)
                self.popen.wait()


class HandCluster:
    """Three servers, three placements, two nodes and two gateways.

    Nodes have network namespaces with links of their own where the machine allows it; `loopback`
    says why it does not, and then each has a loopback address of its own.
    """

    def __init__(self, folder: Path, *, placements: int = 3, nodes: int = 2, gateways: int = 2):
        self.folder = folder
        self.ensemble = ZooKeeperEnsemble(folder / "zookeeper")
        self.token, self.password = secrets.token_hex(16), secrets.token_hex(16)
        (folder / "cluster-token").write_text(self.token)
        self._clock = _build_clock_shift(folder)
        self.namespaces: Namespaces | None = None
        self.loopback = ""
        try:
            self.namespaces = Namespaces(nodes)
        except (OSError, subprocess.CalledProcessError) as error:
            self.loopback = f"no network namespaces: {error}"
        self.placements = [self._placement(number) for number in range(placements)]
        self.nodes = [self._node(number) for number in range(nodes)]
        self.gateways = [self._gateway(number) for number in range(gateways)]
        self.store: ZooKeeperStore | None = None

    @property
    def processes(self) -> list[Process]:
        return [*self.placements, *self.nodes, *self.gateways]

    def start(self) -> HandCluster:
        for process in self.processes:
            process.start()
        wait_until(self._is_ready, "the cluster is ready", READY_SECONDS_MAX)
        self.store = ZooKeeperStore(self.ensemble.hosts, CHROOT, self.token)
        return self

    def stop(self) -> None:
        if self.store is not None:
            self.store.close()
        for process in reversed(self.processes):
            process.stop()
            for way in process.ways:
                way.close()
        self.ensemble.stop()
        if self.namespaces is not None:
            self.namespaces.close()

    def verdict(self) -> Verdict:
        """What is to be said of all that was written up to now."""
        assert self.store is not None
        folders = [server.folder for server in self.ensemble.servers]
        seen = judge(committed(folders, CHROOT))
        if seen.values.get(EPOCH_PATH) != getattr(self.store.get(EPOCH_PATH), "value", None):
            seen.violations.append("the log of ZooKeeper and what it answers differ")
        return seen

    def url(self, gateway: int) -> str:
        return f"http://{self.gateways[gateway].arguments[-1]}"

    def system(self, method: str, path: str, body: Any = None, gateway: int = 0) -> web.Answer:
        wanted = {"Accept": "application/json"}
        return web.call(method, self.url(gateway) + path, body, web.basic(self.password) | wanted)

    def call(self, function: str, body: bytes = b"", gateway: int = 0) -> web.Answer:
        headers = {"Accept": "application/json"}
        return web.call("POST", f"{self.url(gateway)}/function/{function}", body, headers)

    def deploy(self, name: str, code: str, **annotations: str) -> None:
        """Build and deploy the function from CODE[code]."""
        handler = self.folder / "functions" / name
        handler.mkdir(parents=True, exist_ok=True)
        (handler / "handler.py").write_text(CODE[code])
        function = {
            "lang": "python3-stoker",
            "handler": f"./{name}",
            "image": f"stoker/{name}:latest",
            "annotations": annotations,
        }
        spec = {"provider": {"name": "openfaas"}, "functions": {name: function}}
        stack = handler.parent / f"{name}.yaml"
        stack.write_text(json.dumps(spec))
        subprocess.run(
            [STOKER, "deploy", "-f", str(stack)],
            env={
                **os.environ,
                "STOKER_GATEWAY": self.url(0),
                "STOKER_PASSWORD": self.password,
            },
            check=True,
            capture_output=True,
            timeout=60,
        )

    def instances(self, function: str, gateway: int = 0) -> list[dict[str, Any]]:
        listed = self.system("GET", "/system/instances", gateway=gateway).json()
        return [i for i in listed if i["function"] == f"{function}.openfaas-fn"]

    def scale_to_zero(self, function: str, known_to: Sequence[int] = (0, 1)) -> None:
        """Return when these gateways know of it."""
        body = {"serviceName": function, "replicas": 0}
        assert self.system("POST", f"/system/scale-function/{function}", body).status == 202
        wait_until(
            lambda: not any(self.instances(function, gateway) for gateway in known_to),
            f"{function} has no instance",
        )

    def leader(self) -> LeaderRecord | None:
        assert self.store is not None
        entry = self.store.get(LEADER_PATH)
        return decode(LeaderRecord, entry.value) if entry else None

    def leading(self) -> Process:
        """The placement that leads, as soon as one does."""
        found = wait_until(self.leader, "a placement leads")
        return next(p for p in self.placements if p.arguments[-1] == found.address)

    def wait_for_leader(
        self, after_epoch: int, seconds: float = 30.0
    ) -> tuple[LeaderRecord, float]:
        """The next leader, and how long that took from now."""
        began_at = time.monotonic()

        def elected() -> LeaderRecord | None:
            found = self.leader()
            return found if found is not None and found.epoch > after_epoch else None

        found: LeaderRecord = wait_until(elected, f"a leader after epoch {after_epoch}", seconds)
        return found, time.monotonic() - began_at

    def _placement(self, number: int) -> Process:
        bind = f"127.0.0.1:{free_port()}"
        return self._process(f"placement{number}", ("placement",), ("--bind", bind), "127.0.0.1")

    def _node(self, number: int) -> Process:
        sizes = ("--dram-bytes", "64MiB", "--ssd-bytes", "256MiB")
        name = f"node{number}"
        address, near, prefix = f"127.0.0.{number + 2}", "127.0.0.1", ()
        if self.namespaces is not None:
            address, near = self.namespaces.address(number), self.namespaces.gateway_address
            prefix = self.namespaces.prefix(number)
        bind = ("--bind", f"{address}:0")
        return self._process(name, ("node", "--name", name), (*sizes, *bind), near, prefix)

    def _gateway(self, number: int) -> Process:
        bind = f"127.0.0.1:{free_port()}"
        made = self._process(f"gateway{number}", ("gateway",), ("--bind", bind), "127.0.0.1")
        auth = made.folder / "auth"
        auth.mkdir(mode=0o700)
        (auth / "password").write_text(self.password)
        return made

    def _process(
        self,
        name: str,
        verb: tuple[str, ...],
        rest: tuple[str, ...],
        near: str,
        prefix: tuple[str, ...] = (),
    ) -> Process:
        """Its ways to ZooKeeper begin at the address `near`."""
        folder = self.folder / name
        folder.mkdir(mode=0o700)
        ways = [Proxy(server.hosts, near) for server in self.ensemble.servers]
        hosts = ",".join(way.hosts for way in ways)
        shared = (
            *("--state", str(folder), "--store", f"zookeeper://{hosts}{CHROOT}"),
            *("--cluster-token-file", str(self.folder / "cluster-token")),
        )
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("STOKER_")},
            "LD_PRELOAD": str(self._clock),
            "CLOCK_SHIFT_FILE": str(folder / "clock"),
            "STOKER_LOG_LEVEL": "debug",
            "STOKER_INSTANCES_MAXIMUM": "8",
            "STOKER_CORES": "1",
        }
        made = Process(name, (*verb, *shared, *rest), environment, folder, prefix, ways)
        made.shift_clock(0.0)
        return made

    def _is_ready(self) -> bool:
        for process in self.processes:
            ended = process.popen is None or process.popen.poll() is not None
            assert not ended, f"{process.name} ended:\n{process.log.read_text()[-2000:]}"
        for number in range(len(self.gateways)):
            try:
                nodes = self.system("GET", "/system/nodes", gateway=number)
            except OSError:
                return False
            ready = [n for n in nodes.json() if n["zygote_ready"]] if nodes.status == 200 else []
            if len(ready) < len(self.nodes):
                return False
        return True


def _build_clock_shift(folder: Path) -> Path:
    library = folder / "clock_shift.so"
    source = Path(__file__).with_name("clock_shift.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    return library
