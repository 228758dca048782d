"""The gateway's settings, read once from the environment; a bad value stops the start."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stoker.gateway.access import TOKEN_WANTED
from stoker.gateway.hosts import valid_domain
from stoker.gateway.ssrf import PrivateDestinations
from stoker.placement.environment import (
    bind_address,
    bundles_url,
    choice,
    cluster_token_file,
    descriptor,
    log_level,
    state_dir,
    store_url,
    whole_number,
)
from stoker.placement.errors import BadRequest
from stoker.placement.secrets_file import read_or_create_secret, read_secret

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """Sizes in bytes, times in seconds.

    `response_head_seconds` counts from the dispatch to an instance, `queue_seconds` from the
    arrival to the dispatch. `jobs_maximum` are those that wait or run; callbacks reach only what is
    public and `private_destinations`. With `function_token_wanted` every function wants a token. A
    `listening_descriptor` is a socket that somebody else bound to `bind`. Hosts
    `name.namespace.domain` are functions, if there is a domain.
    """

    store_url: str
    state_dir: Path
    cluster_token_file: Path
    bind: str = "127.0.0.1:8080"
    body_bytes_maximum: int = 64 * MIB
    response_head_seconds: float = 600.0
    queue_seconds: float = 600.0
    log_level: str = "info"
    jobs_maximum: int = 10_000
    private_destinations: PrivateDestinations = field(default_factory=PrivateDestinations)
    bundles_url: str | None = None
    function_token_wanted: bool = False
    listening_descriptor: int | None = None
    domain: str = ""

    @property
    def password_file(self) -> Path:
        return self.state_dir / "auth" / "password"

    @property
    def jobs_folder(self) -> Path:
        return self.state_dir / "jobs"

    @property
    def audit_file(self) -> Path:
        return self.state_dir / "audit" / "gateway.jsonl"

    @property
    def buffered_bytes_maximum(self) -> int:
        """Request bodies in memory, of all requests together."""
        return 8 * self.body_bytes_maximum

    @staticmethod
    def from_environment(environment: Mapping[str, str]) -> Settings:
        """The settings in `environment`; BadRequest naming the variable that is wrong."""
        host, port = bind_address(environment, "STOKER_GATEWAY_BIND", "127.0.0.1:8080")
        return Settings(
            store_url=store_url(environment),
            state_dir=state_dir(environment),
            cluster_token_file=cluster_token_file(environment),
            bind=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            body_bytes_maximum=whole_number(environment, "STOKER_BODY_BYTES_MAXIMUM", 64 * MIB),
            response_head_seconds=whole_number(
                environment, "STOKER_RESPONSE_HEAD_SECONDS_MAXIMUM", 600
            ),
            queue_seconds=whole_number(environment, "STOKER_QUEUE_SECONDS_MAXIMUM", 600),
            log_level=log_level(environment),
            jobs_maximum=whole_number(environment, "STOKER_JOBS_MAXIMUM", 10_000),
            private_destinations=PrivateDestinations.parse(
                environment.get("STOKER_PRIVATE_DESTINATIONS") or ""
            ),
            bundles_url=bundles_url(environment),
            listening_descriptor=descriptor(environment, "STOKER_GATEWAY_DESCRIPTOR"),
            function_token_wanted=choice(
                environment, "STOKER_FUNCTION_AUTH", ("none", TOKEN_WANTED)
            )
            == TOKEN_WANTED,
            domain=valid_domain(environment.get("STOKER_DOMAIN") or ""),
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
