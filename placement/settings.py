"""The settings of the placement process, read once from the environment."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from stoker.placement.errors import BadRequest

LOG_LEVELS = ("debug", "info", "warning", "error")
TOKEN_CHARACTERS_MINIMUM = 16


@dataclass(frozen=True, slots=True)
class Settings:
    """`bind_host` is also the address at which the others reach this process."""

    store_url: str
    cluster_token_file: Path
    bind_host: str = "127.0.0.1"
    bind_port: int = 0
    log_level: str = "info"

    @staticmethod
    def from_environment(environment: Mapping[str, str]) -> Settings:
        """The settings in `environment`; BadRequest naming the variable that is wrong."""
        state = Path(environment.get("STOKER_STATE") or "~/.stoker").expanduser().absolute()
        host, port = _bind(environment.get("STOKER_PLACEMENT_BIND") or "127.0.0.1:0")
        log_level = (environment.get("STOKER_LOG_LEVEL") or "info").lower()
        if log_level not in LOG_LEVELS:
            _refuse("STOKER_LOG_LEVEL", " or ".join(LOG_LEVELS), log_level)
        token_file = environment.get("STOKER_CLUSTER_TOKEN_FILE")
        return Settings(
            store_url=environment.get("STOKER_STORE") or f"sqlite://{state / 'store.sqlite'}",
            cluster_token_file=Path(token_file) if token_file else state / "auth/cluster-token",
            bind_host=host,
            bind_port=port,
            log_level=log_level,
        )

    def cluster_token(self) -> str:
        """The secret shared by the processes of the cluster, read from its file."""
        try:
            token = self.cluster_token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not ASCII text"
            raise BadRequest(
                f"Expected the cluster token in {self.cluster_token_file}, found: {reason}.",
                "Set STOKER_CLUSTER_TOKEN_FILE to a readable file.",
            ) from error
        if len(token) < TOKEN_CHARACTERS_MINIMUM:
            raise BadRequest(
                f"Expected a cluster token of at least {TOKEN_CHARACTERS_MINIMUM} characters in "
                f"{self.cluster_token_file}, found {len(token)}.",
                "Write a random token into the file.",
            )
        return token


def _bind(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        _refuse("STOKER_PLACEMENT_BIND", "host:port", text)
    try:
        unspecified = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        unspecified = False
    if unspecified:
        _refuse("STOKER_PLACEMENT_BIND", "the address at which other machines reach this one", text)
    return host, int(port)


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


def _refuse(name: str, expected: str, found: str) -> NoReturn:
    raise BadRequest(f"Expected {expected} in {name}, found {found!r:.100}.", f"Correct {name}.")
