"""What every process reads from its environment; a bad value is a BadRequest that names it."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from stoker.placement.errors import BadRequest, BadSpec

LOG_LEVELS = ("debug", "info", "warning", "error")


def state_dir(environment: Mapping[str, str]) -> Path:
    """$STOKER_STATE, else ~/.stoker."""
    return Path(environment.get("STOKER_STATE") or "~/.stoker").expanduser().absolute()


def store_url(environment: Mapping[str, str]) -> str:
    """$STOKER_STORE, else the SQLite file in the state directory."""
    return environment.get("STOKER_STORE") or f"sqlite://{state_dir(environment)}/store.sqlite"


def cluster_token_file(environment: Mapping[str, str]) -> Path:
    """$STOKER_CLUSTER_TOKEN_FILE, else the one in the state directory."""
    named = environment.get("STOKER_CLUSTER_TOKEN_FILE")
    return Path(named) if named else state_dir(environment) / "auth" / "cluster-token"


def bundles_url(environment: Mapping[str, str]) -> str | None:
    """$STOKER_BUNDLES: where the code of functions is kept; None for where the store says."""
    return environment.get("STOKER_BUNDLES") or None


def s3_endpoint_url(environment: Mapping[str, str]) -> str | None:
    """$STOKER_S3_ENDPOINT_URL, before AWS's variables; None for Amazon's own. BadSpec."""
    endpoint = _first(
        environment, "STOKER_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"
    )
    if endpoint is not None:
        _check_endpoint(endpoint)
    return endpoint


def s3_region(environment: Mapping[str, str]) -> str | None:
    return _first(environment, "STOKER_S3_REGION", "AWS_REGION", "AWS_DEFAULT_REGION")


def log_level(environment: Mapping[str, str]) -> str:
    level = (environment.get("STOKER_LOG_LEVEL") or "info").lower()
    if level not in LOG_LEVELS:
        _refuse("STOKER_LOG_LEVEL", " or ".join(LOG_LEVELS), level)
    return level


def bind_address(environment: Mapping[str, str], name: str, default: str) -> tuple[str, int]:
    """Host (without brackets) and port of the variable `name`."""
    text = environment.get(name) or default
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        _refuse(name, "host:port", text)
    return host.removeprefix("[").removesuffix("]"), int(port)


def announced_address(environment: Mapping[str, str], name: str, default: str) -> tuple[str, int]:
    """As `bind_address`, of a process that tells others its host: no wildcard."""
    host, port = bind_address(environment, name, default)
    try:
        wildcard = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        wildcard = False  # a host name
    if wildcard:
        _refuse(name, "the address at which other machines reach this one", f"{host}:{port}")
    return host, port


def whole_number(environment: Mapping[str, str], name: str, default: int) -> int:
    """A whole number of at least 1."""
    text = environment.get(name) or str(default)
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        _refuse(name, "a whole number of at least 1", text)
    return int(text)


def seconds(environment: Mapping[str, str], name: str, default: float) -> float:
    """Seconds, more than 0 and at most a day."""
    text = environment.get(name) or str(default)
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.0 < number <= 86400.0:
        _refuse(name, "seconds, more than 0 and at most 86400", text)
    return number


def choice(environment: Mapping[str, str], name: str, known: tuple[str, ...]) -> str:
    """One of the `known` words, of which the first is the default."""
    text = environment.get(name) or known[0]
    if text not in known:
        _refuse(name, " or ".join(known), text)
    return text


def enabled(environment: Mapping[str, str], name: str) -> bool:
    """`on`, which is the default, or `off`."""
    return choice(environment, name, ("on", "off")) == "on"


def descriptor(environment: Mapping[str, str], name: str) -> int | None:
    """The number of an inherited descriptor, above the standard three; None when not set."""
    text = environment.get(name)
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or not 2 < int(text) < 1 << 20:
        _refuse(name, "the number of an inherited descriptor", text)
    return int(text)


def _first(environment: Mapping[str, str], *names: str) -> str | None:
    return next((environment[name] for name in names if environment.get(name)), None)


def _check_endpoint(endpoint: str) -> None:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        shown = f"{parts.scheme}://{parts.hostname}"
        raise BadSpec(
            f"Expected an S3 endpoint as http(s)://host[:port] without credentials, found {shown}.",
            "Correct STOKER_S3_ENDPOINT_URL and give the keys in AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY.",
        )


def _refuse(name: str, expected: str, found: str) -> NoReturn:
    raise BadRequest(f"Expected {expected} in {name}, found {found!r:.100}.", f"Correct {name}.")
