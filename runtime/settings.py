"""The agent's settings, read once from the environment; a bad value stops the start."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stoker.placement.errors import BadRequest
from stoker.placement.names import valid_node_id

_GIB = 1 << 30
_LEVELS = ("debug", "info", "warning", "error")
_TOKEN_CHARACTERS_MINIMUM = 16
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class Settings:
    """What one node agent is told. `bind_host` is also the host of every instance address."""

    store_url: str
    state_dir: Path
    cluster_token: str
    node_id: str
    bind_host: str
    bind_port: int
    cores: int
    dram_bytes: int
    ssd_bytes: int
    instances_maximum: int
    log_level: str

    @property
    def ssd_dir(self) -> Path:
        return self.state_dir / "ssd"

    @property
    def code_dir(self) -> Path:
        return self.state_dir / "code"

    @property
    def function_logs_dir(self) -> Path:
        return self.state_dir / "logs" / "functions"

    @property
    def run_dir(self) -> Path:
        return self.state_dir / "run"

    @staticmethod
    def from_environment(environment: Mapping[str, str]) -> Settings:
        """The settings in `environment`; BadRequest names the first bad variable."""
        state_dir = Path(environment.get("STOKER_STATE") or Path.home() / ".stoker").absolute()
        host, port = _bind_address(environment.get("STOKER_AGENT_BIND", "127.0.0.1:0"))
        token_file = environment.get("STOKER_CLUSTER_TOKEN_FILE")
        return Settings(
            store_url=environment.get("STOKER_STORE") or f"sqlite://{state_dir}/store.sqlite",
            state_dir=state_dir,
            cluster_token=_token(Path(token_file or state_dir / "auth" / "cluster-token")),
            node_id=valid_node_id(environment.get("STOKER_NODE_ID") or socket.gethostname()),
            bind_host=host,
            bind_port=port,
            cores=_number(environment, "STOKER_CORES", 1, _available_cores()),
            dram_bytes=_number(
                environment, "STOKER_DRAM_BYTES", 1, min(_memory_bytes() // 4, 8 * _GIB)
            ),
            ssd_bytes=_number(
                environment, "STOKER_SSD_BYTES", 1, min(_free_disk_bytes(state_dir) // 2, 50 * _GIB)
            ),
            instances_maximum=_number(environment, "STOKER_INSTANCES_MAXIMUM", 1, 16),
            log_level=_level(environment.get("STOKER_LOG_LEVEL", "info").lower()),
        )


def _bind_address(text: str) -> tuple[str, int]:
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65535:
        raise BadRequest(
            f"Expected host:port in STOKER_AGENT_BIND, found {text!r}.",
            "Write for example 127.0.0.1:0.",
        )
    host = host.removeprefix("[").removesuffix("]")
    try:
        wildcard = not host or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        wildcard = False  # a host name
    if wildcard:
        # The host is announced with every instance address.
        raise BadRequest(
            f"Expected an address that the gateway can reach in STOKER_AGENT_BIND, found {text!r}.",
            "Name the address of one interface of this machine.",
        )
    return host, int(port)


def _token(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise BadRequest(
            f"Expected the cluster token in {path}, found: {error.strerror}.",
            "Set STOKER_CLUSTER_TOKEN_FILE to a file with the token of the cluster.",
        ) from error
    if len(token) < _TOKEN_CHARACTERS_MINIMUM or not token.isascii() or not token.isprintable():
        raise BadRequest(
            f"Expected at least {_TOKEN_CHARACTERS_MINIMUM} printable ASCII characters in {path}, "
            f"found {len(token)} characters that do not qualify.",
            "Write a random token into the file.",
        )
    return token


def _level(text: str) -> str:
    if text not in _LEVELS:
        raise BadRequest(
            f"Expected one of {', '.join(_LEVELS)} in STOKER_LOG_LEVEL, found {text!r:.80}."
        )
    return text


def _number(environment: Mapping[str, str], name: str, minimum: int, default: int) -> int:
    text = environment.get(name)
    if not text:
        return default
    if not text.isdecimal() or int(text) < minimum:
        raise BadRequest(
            f"Expected a whole number of at least {minimum} in {name}, found {text!r:.80}."
        )
    return int(text)


def _available_cores() -> int:
    cores = len(os.sched_getaffinity(0))
    quota = _read(_CPU_QUOTA).split()
    if len(quota) == 2 and quota[0].isdecimal():
        cores = min(cores, int(quota[0]) // int(quota[1]))
    return max(1, cores)


def _memory_bytes() -> int:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _read(_MEMORY_LIMIT).strip()
    return min(memory, int(limit)) if limit.isdecimal() else memory


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # no control group of version 2: no limit
        return ""


def _free_disk_bytes(state_dir: Path) -> int:
    existing = next(path for path in (state_dir, *state_dir.parents) if path.exists())
    return shutil.disk_usage(existing).free
