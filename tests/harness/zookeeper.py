"""A real ZooKeeper server in a process of its own, for tests."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

READY_SECONDS_MAX = 20.0
STOP_SECONDS_MAX = 10.0
JAR = Path("/usr/share/java/zookeeper.jar")
INSTALL = "install with: apt-get install zookeeper default-jre-headless"


class ZooKeeperServer:
    """One standalone server on a free port of the loopback interface; its data is in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._java = shutil.which("java")
        if self._java is None or not JAR.is_file():
            missing = "java on PATH" if self._java is None else str(JAR)
            raise RuntimeError(f"Expected {missing} for the ZooKeeper tests; {INSTALL}.")
        self._folder = folder
        self._port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def hosts(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it, on the same port and data as before, and wait until it answers."""
        self._folder.mkdir(exist_ok=True)
        config = self._folder / "zoo.cfg"
        config.write_text(
            "tickTime=500\ninitLimit=10\nsyncLimit=5\nmaxClientCnxns=0\n"
            f"dataDir={self._folder}\nclientPort={self._port}\nclientPortAddress=127.0.0.1\n"
            "minSessionTimeout=1000\nadmin.enableServer=false\n4lw.commands.whitelist=*\n"
        )
        options = ["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        options += ["-Dzookeeper.preAllocSize=1024"]
        main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._java), *options, "-cp", str(JAR), main, str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._wait_until_ready()

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

    def _wait_until_ready(self) -> None:
        # Nothing tells when a server of another's making listens: ask it again and again.
        deadline = time.monotonic() + READY_SECONDS_MAX
        while self._ask() != b"imok":
            exited = self._process is None or self._process.poll() is not None
            if exited or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(
                    f"Expected ZooKeeper to answer on port {self._port} within "
                    f"{READY_SECONDS_MAX:g} s, found none: see {self._folder / 'log'}."
                )
            time.sleep(0.05)

    def _ask(self) -> bytes:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1.0) as connection:
                connection.sendall(b"ruok")
                return connection.recv(16)
        except OSError:
            return b""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
