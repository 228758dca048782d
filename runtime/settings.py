"""The agent's settings, read once from the environment; a bad value stops the start."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stoker.placement.environment import (
    announced_address,
    bundles_url,
    cluster_token_file,
    descriptor,
    log_level,
    state_dir,
    store_url,
    whole_number,
)
from stoker.placement.names import valid_node_id, valid_zone
from stoker.placement.secrets_file import read_secret
from stoker.runtime.limits import GIB, core_count, default_dram_bytes, memory_bytes


@dataclass(frozen=True, slots=True)
class Settings:
    """What one node agent is told. `bind_host` is also the host of every instance address.

    `pool_descriptor` is a memory file that is handed from agent to agent, None without one. `zone`
    is what fails together with this node, empty if that is not known.
    """

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
    bundles_url: str | None
    pool_descriptor: int | None
    zone: str

    @property
    def ssd_dir(self) -> Path:
        return self.state_dir / "ssd"

    @property
    def code_dir(self) -> Path:
        return self.state_dir / "code"

    @property
    def environments_dir(self) -> Path:
        return self.state_dir / "environments"

    @property
    def function_logs_dir(self) -> Path:
        return self.state_dir / "logs" / "functions"

    @property
    def run_dir(self) -> Path:
        return self.state_dir / "run"

    @staticmethod
    def from_environment(environment: Mapping[str, str]) -> Settings:
        """The settings in `environment`; BadRequest names the first bad variable."""
        state = state_dir(environment)
        host, port = announced_address(environment, "STOKER_AGENT_BIND", "127.0.0.1:0")
        dram_bytes = default_dram_bytes(memory_bytes())
        ssd_bytes = min(_free_disk_bytes(state) // 2, 50 * GIB)
        return Settings(
            store_url=store_url(environment),
            state_dir=state,
            cluster_token=read_secret(cluster_token_file(environment)),
            node_id=valid_node_id(environment.get("STOKER_NODE_ID") or socket.gethostname()),
            bind_host=host,
            bind_port=port,
            cores=whole_number(environment, "STOKER_CORES", core_count()),
            dram_bytes=whole_number(environment, "STOKER_DRAM_BYTES", dram_bytes),
            ssd_bytes=whole_number(environment, "STOKER_SSD_BYTES", ssd_bytes),
            instances_maximum=whole_number(environment, "STOKER_INSTANCES_MAXIMUM", 16),
            log_level=log_level(environment),
            bundles_url=bundles_url(environment),
            pool_descriptor=descriptor(environment, "STOKER_POOL_DESCRIPTOR"),
            zone=valid_zone(environment.get("STOKER_ZONE", "")),
        )


def _free_disk_bytes(state_dir: Path) -> int:
    existing = next(path for path in (state_dir, *state_dir.parents) if path.exists())
    return shutil.disk_usage(existing).free
