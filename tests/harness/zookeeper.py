"""Real ZooKeeper servers in processes of their own, for tests."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

READY_SECONDS_MAX = 20.0
STOP_SECONDS_MAX = 10.0
JAR = Path("/usr/share/java/zookeeper.jar")
INSTALL = "install with: apt-get install zookeeper default-jre-headless"
# What the tests' stores show ZooKeeper.
TOKEN = "cluster-token-of-the-zookeeper-tests"

_JAVA_OPTIONS = (
    *("-Xmx64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
    "-Dzookeeper.preAllocSize=1024",
    # What a test kills is a process, not the machine: what was written outlives it without a sync,
    # and no session ends because a neighbour keeps the disk busy.
    "-Dzookeeper.forceSync=no",
)


class ZooKeeperServer:
    """One server on a free port of the loopback interface; its data is in `folder`.

    It stands alone, unless `members` names the whole ensemble that it is number `number` of, and
    is started at once, unless it is one of an ensemble.
    """

    def __init__(self, folder: Path, number: int = 1, members: str = "") -> None:
        self._java = shutil.which("java")
        if self._java is None or not JAR.is_file():
            missing = "java on PATH" if self._java is None else str(JAR)
            raise RuntimeError(f"Expected {missing} for the ZooKeeper tests; {INSTALL}.")
        self.folder = folder
        self._number = number
        self._members = members
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        if not members:
            self.start()

    @property
    def hosts(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def mode(self) -> str:
        """`standalone`, `leader`, `follower`, or nothing while it serves nobody."""
        _, found, rest = self._ask().partition("Mode: ")
        return rest.split()[0] if found else ""

    def start(self) -> None:
        """Start it, on the same port and data as before, and wait until it serves."""
        self.launch()
        self.wait_until_serving()

    def launch(self) -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "myid").write_text(str(self._number))
        config = self.folder / "zoo.cfg"
        config.write_text(
            "tickTime=500\ninitLimit=10\nsyncLimit=5\nmaxClientCnxns=0\n"
            f"dataDir={self.folder}\nclientPort={self._port}\nclientPortAddress=127.0.0.1\n"
            "minSessionTimeout=1000\nadmin.enableServer=false\n4lw.commands.whitelist=srvr\n"
            + (f"standaloneEnabled=false\n{self._members}" if self._members else "")
        )
        main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._java), *_JAVA_OPTIONS, "-cp", str(JAR), main, str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_until_serving(self) -> None:
        # Nothing tells when a server of another's making listens: ask it again and again.
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not self.mode:
            exited = self._process is None or self._process.poll() is not None
            if exited or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(
                    f"Expected ZooKeeper to serve on port {self._port} within "
                    f"{READY_SECONDS_MAX:g} s, found that it does not: see {self.folder / 'log'}."
                )
            time.sleep(0.05)

    def stop(self) -> None:
        """End it; its clients see a closed connection."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def suspend(self) -> None:
        """Stop it from running; its clients see silence."""
        if self._process:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self._process:
            self._process.send_signal(signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        if self._process:
            self.resume()
            self._process.send_signal(number)
            try:
                self._process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _ask(self) -> str:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1.0) as connection:
                connection.sendall(b"srvr")
                return b"".join(iter(lambda: connection.recv(4096), b"")).decode()
        except OSError:
            return ""


class ZooKeeperEnsemble:
    """Three servers that stand for one another while two of them serve."""

    def __init__(self, folder: Path, count: int = 3) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        members = "".join(
            f"server.{number}=127.0.0.1:{free_port()}:{free_port()}\n"
            for number in range(1, count + 1)
        )
        self.servers = [
            ZooKeeperServer(folder / f"zk{number}", number, members)
            for number in range(1, count + 1)
        ]
        self.start()

    @property
    def hosts(self) -> str:
        return ",".join(server.hosts for server in self.servers)

    @property
    def leader(self) -> ZooKeeperServer:
        return next(server for server in self.servers if server.mode == "leader")

    def start(self) -> None:
        self._each(ZooKeeperServer.launch)
        self._each(ZooKeeperServer.wait_until_serving)

    def stop(self) -> None:
        self._each(ZooKeeperServer.stop)

    def kill(self) -> None:
        self._each(ZooKeeperServer.kill)

    def _each(self, do: Callable[[ZooKeeperServer], None]) -> None:
        for server in self.servers:
            do(server)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
