"""`stoker up`: placement, one node and the gateway on this machine, under one supervisor."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from stoker.deploy.supervisor import ChildSpec, Supervisor, python_module
from stoker.deploy.up_settings import (
    DEFAULT_PORT,
    UpSettings,
    default_store_url,
    parse_size_bytes,
)
from stoker.gateway.cli.client import Access, GatewayClient
from stoker.gateway.cli.options import reports_errors
from stoker.placement.environment import state_dir
from stoker.placement.errors import Conflict, DeadlineExceeded, StokerError, StorageFull
from stoker.placement.secrets_file import read_or_create_secret
from stoker.placement.state_lock import lock_state

READY_SECONDS = 60.0
LOOK_SECONDS = 0.1
BACKLOG = 2048
_FOLDERS = ("auth", "sessions", "ssd", "code", "logs", "run")
# In the order in which they stop: no new request, then no new decision, then the instances.
_PROCESSES = (
    ("gateway", "stoker.gateway.main"),
    ("placement", "stoker.placement.main"),
    ("agent", "stoker.runtime.agent_main"),
)


@click.command()
@click.option("--state", type=click.Path(path_type=Path), default=None, help="State directory.")
@click.option("--port", type=click.IntRange(1, 65535), default=DEFAULT_PORT, show_default=True)
@click.option("--dram-bytes", default=None, metavar="SIZE", help="Host memory for checkpoints.")
@click.option("--ssd-bytes", default=None, metavar="SIZE", help="Disk for checkpoints.")
@click.option("--store", default=None, metavar="URL", help="Store, e.g. zookeeper://host:2181/a.")
@reports_errors
def up(
    state: Path | None,
    port: int,
    dram_bytes: str | None,
    ssd_bytes: str | None,
    store: str | None,
) -> None:
    """Run Stoker on this machine until Ctrl-C."""
    directory = (state or state_dir(os.environ)).expanduser().resolve()
    settings = UpSettings(
        state=directory,
        port=port,
        store_url=store or default_store_url(directory),
        dram_bytes=None if dram_bytes is None else parse_size_bytes(dram_bytes),
        ssd_bytes=None if ssd_bytes is None else parse_size_bytes(ssd_bytes),
    )
    run(settings, click.echo)


def run(settings: UpSettings, tell: Callable[[str], None]) -> None:
    """Everything `up` does, until a stop signal; StokerError when it cannot."""
    prepare_state(settings.state)
    with (
        lock_state(settings.state, "up"),
        pool_memory() as memory,
        gateway_socket(settings.port) as listening,
    ):
        password_path = settings.state / "auth" / "password"
        password = read_or_create_secret(password_path)
        read_or_create_secret(settings.state / "auth" / "cluster-token")
        environment = settings.environment(dict(os.environ))
        inherited = {
            "agent": {"STOKER_POOL_DESCRIPTOR": memory},
            "gateway": {"STOKER_GATEWAY_DESCRIPTOR": listening},
            "placement": {},
        }
        specs = [
            ChildSpec(
                name=name,
                argv=python_module(module),
                environment=environment | {k: str(v) for k, v in inherited[name].items()},
                log_path=settings.state / "logs" / f"{name}.log",
                descriptors=tuple(inherited[name].values()),
            )
            for name, module in _PROCESSES
        ]
        tell(f"state      {settings.state}")
        readiness = GatewayReadiness(
            GatewayClient(Access(f"http://127.0.0.1:{settings.port}", password)),
            settings.state / "logs",
            tell,
            lambda: tell(_welcome(settings.port, password_path)),
        )
        try:
            Supervisor(specs, tell).run(readiness)
        finally:
            remove_sockets(settings.state / "run")
        tell("stopped")


def prepare_state(state: Path) -> None:
    """Make the state directory and its folders, readable by their owner alone."""
    try:
        for folder in (state, *(state / name for name in _FOLDERS)):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
    except OSError as error:
        raise StorageFull(
            f"Expected to make the state directory {state}, found: {error.strerror}.",
            "Name another with --state.",
        ) from error


@contextlib.contextmanager
def pool_memory() -> Iterator[int]:
    """An empty memory file for the node's pool, whose bytes outlive each agent that uses it."""
    descriptor = os.memfd_create("stoker-pool", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def gateway_socket(port: int) -> Iterator[int]:
    """The gateway's socket, which outlives each gateway: while one is replaced, clients wait.

    Conflict when something listens there already.
    """
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(("127.0.0.1", port))
            bound.listen(BACKLOG)
        except OSError as error:
            raise Conflict(
                f"Expected port {port} of 127.0.0.1 to be free, found: {error.strerror}.",
                "Name another with --port.",
            ) from error
        yield bound.fileno()


def remove_sockets(folder: Path) -> None:
    """Delete the sockets that killed processes left in `folder`."""
    for path in folder.iterdir():
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink(missing_ok=True)


class GatewayReadiness:
    """Ready when the gateway answers and a node can fork workers.

    This polls, at the start only: a child's HTTP server cannot tell that it listens by any event
    that this process could wait for without a second protocol between them.
    """

    def __init__(
        self,
        client: GatewayClient,
        logs: Path,
        tell: Callable[[str], None],
        on_ready: Callable[[], None],
    ) -> None:
        self._client = client
        self._logs = logs
        self._tell = tell
        self._on_ready = on_ready
        self._began_at = time.monotonic()
        self._gateway_ready = False

    def look(self, now: float) -> float | None:
        """Tell each stage that is reached; DeadlineExceeded after READY_SECONDS."""
        waited_seconds = now - self._began_at
        if not self._gateway_ready and self._ask("/healthz") is not None:
            self._gateway_ready = True
            self._tell(f"gateway    ready after {waited_seconds:.1f} s")
        if self._gateway_ready:
            nodes = self._ask("/system/nodes") or []
            ready = [str(node["node_id"]) for node in nodes if node.get("zygote_ready")]
            if ready:
                self._tell(f"node       {ready[0]} ready after {waited_seconds:.1f} s")
                self._on_ready()
                return None
        if waited_seconds > READY_SECONDS:
            missing = "agent" if self._gateway_ready else "gateway"
            expected = "a node to be ready" if self._gateway_ready else "the gateway to answer"
            raise DeadlineExceeded(
                f"Expected {expected} within {READY_SECONDS:.0f} s, found it was not.",
                f"Read {self._logs / f'{missing}.log'}.",
            )
        return LOOK_SECONDS

    def _ask(self, path: str) -> Any:
        """The decoded answer, [] for one without JSON, None when there is none yet."""
        try:
            with self._client.open("GET", path, timeout_seconds=1.0) as answer:
                if answer.status != 200:
                    return None
                return answer.json() if answer.content_type.endswith("json") else []
        except StokerError:
            return None


def _welcome(port: int, password_path: Path) -> str:
    url = f"http://127.0.0.1:{port}"
    return f"""
Gateway    {url}
Password   of the user admin: {password_path}

    stoker deploy -f functions/echo/stack.yaml
    stoker invoke echo --data hello

Ctrl-C stops everything."""
