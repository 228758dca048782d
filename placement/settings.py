"""The settings of the placement process, read once from the environment."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stoker.placement.environment import (
    announced_address,
    cluster_token_file,
    enabled,
    log_level,
    seconds,
    store_url,
)
from stoker.placement.errors import BadRequest
from stoker.placement.histogram import BIN_SECONDS
from stoker.placement.secrets_file import read_secret


@dataclass(frozen=True, slots=True)
class Settings:
    """`bind_host` is also the address at which the others reach this process.

    `idle_bin_seconds` is the grain at which idle times are learnt; all of keep-alive scales with
    it. With `prefetches`, nodes bring checkpoints before anybody calls them.
    """

    store_url: str
    cluster_token_file: Path
    bind_host: str = "127.0.0.1"
    bind_port: int = 0
    log_level: str = "info"
    idle_bin_seconds: float = BIN_SECONDS
    prefetches: bool = True

    @staticmethod
    def from_environment(environment: Mapping[str, str]) -> Settings:
        """The settings in `environment`; BadRequest naming the variable that is wrong."""
        host, port = announced_address(environment, "STOKER_PLACEMENT_BIND", "127.0.0.1:0")
        return Settings(
            store_url=store_url(environment),
            cluster_token_file=cluster_token_file(environment),
            bind_host=host,
            bind_port=port,
            log_level=log_level(environment),
            idle_bin_seconds=seconds(environment, "STOKER_IDLE_BIN_SECONDS", BIN_SECONDS),
            prefetches=enabled(environment, "STOKER_PREFETCH"),
        )

    def cluster_token(self) -> str:
        """The secret shared by the processes of the cluster; BadRequest if there is none."""
        return read_secret(self.cluster_token_file)


def bound_socket(host: str, port: int) -> socket.socket:
    """A TCP socket bound to `host:port`, not yet listening; BadRequest if it cannot be."""
    bound = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        if bound is not None:
            bound.close()
        raise BadRequest(
            f"Expected to bind {host}:{port} (STOKER_PLACEMENT_BIND), found: {error}.",
            "Choose an address of this machine and a free port.",
        ) from error
    return bound
