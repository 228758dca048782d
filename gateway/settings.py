"""The gateway's settings, read once from the environment; a bad value stops the start."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stoker.placement.errors import BadRequest
from stoker.placement.secrets_file import read_or_create_secret, read_secret

LOG_LEVELS = ("debug", "info", "warning", "error")
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """Sizes in bytes, times in seconds.

    `response_head_seconds` counts from the dispatch to an instance, `queue_seconds` from the
    arrival to the dispatch.
    """

    store_url: str
    state_dir: Path
    cluster_token_file: Path
    bind: str = "127.0.0.1:8080"
    body_bytes_maximum: int = 64 * MIB
    response_head_seconds: float = 600.0
    queue_seconds: float = 600.0
    log_level: str = "info"

    @property
    def password_file(self) -> Path:
        return self.state_dir / "auth" / "password"

    @property
    def buffered_bytes_maximum(self) -> int:
        """Request bodies in memory, of all requests together."""
        return 8 * self.body_bytes_maximum

    @staticmethod
    def from_environment(environment: Mapping[str, str]) -> Settings:
        """The settings in `environment`; BadRequest naming the variable that is wrong."""
        state = Path(environment.get("STOKER_STATE") or Path.home() / ".stoker").absolute()
        token_file = environment.get("STOKER_CLUSTER_TOKEN_FILE")
        level = (environment.get("STOKER_LOG_LEVEL") or "info").lower()
        if level not in LOG_LEVELS:
            raise _refused("STOKER_LOG_LEVEL", " or ".join(LOG_LEVELS), level)
        return Settings(
            store_url=environment.get("STOKER_STORE") or f"sqlite://{state / 'store.sqlite'}",
            state_dir=state,
            cluster_token_file=Path(token_file) if token_file else state / "auth" / "cluster-token",
            bind=_bind(environment.get("STOKER_GATEWAY_BIND") or "127.0.0.1:8080"),
            body_bytes_maximum=_whole(environment, "STOKER_BODY_BYTES_MAXIMUM", 64 * MIB),
            response_head_seconds=_whole(environment, "STOKER_RESPONSE_HEAD_SECONDS_MAXIMUM", 600),
            queue_seconds=_whole(environment, "STOKER_QUEUE_SECONDS_MAXIMUM", 600),
            log_level=level,
        )

    def prepare_secrets(self) -> None:
        """Make sure that password and cluster token exist; refuse a public address without one.

        A password generated at the first start would guard a public address that nobody could
        yet log in to, and nobody would notice that it is open to the network.
        """
        if not is_loopback(self.bind) and not self.password_file.exists():
            raise BadRequest(
                f"Expected a password in {self.password_file} before listening on {self.bind}, "
                "found none.",
                "Write one there, start once on 127.0.0.1, or listen on 127.0.0.1 only.",
            )
        read_or_create_secret(self.password_file)
        read_or_create_secret(self.cluster_token_file)

    def password(self) -> str:
        return read_secret(self.password_file)

    def cluster_token(self) -> str:
        return read_secret(self.cluster_token_file)


def is_loopback(bind: str) -> bool:
    """Whether `host:port` is reached from this machine alone."""
    host = bind.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bind(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise _refused("STOKER_GATEWAY_BIND", "host:port", text)
    return text


def _whole(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise _refused(name, "a whole number of at least 1", text)
    return int(text)


def _refused(name: str, expected: str, found: str) -> BadRequest:
    return BadRequest(f"Expected {expected} in {name}, found {found!r:.100}.", f"Correct {name}.")
