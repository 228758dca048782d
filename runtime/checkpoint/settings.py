"""The settings of checkpoint loading, read once from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from stoker.placement.errors import BadSpec


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """`s3_endpoint_url` None means Amazon's own; credentials come from the usual AWS variables."""

    s3_endpoint_url: str | None = None
    s3_region: str | None = None

    @staticmethod
    def from_environment(environ: Mapping[str, str]) -> CheckpointSettings:
        """STOKER_S3_ENDPOINT_URL and STOKER_S3_REGION go before AWS's variables."""
        endpoint = _first(
            environ, "STOKER_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"
        )
        if endpoint is not None:
            _check_endpoint(endpoint)
        region = _first(environ, "STOKER_S3_REGION", "AWS_REGION", "AWS_DEFAULT_REGION")
        return CheckpointSettings(endpoint, region)


def _first(environ: Mapping[str, str], *names: str) -> str | None:
    return next((environ[name] for name in names if environ.get(name)), None)


def _check_endpoint(endpoint: str) -> None:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        shown = f"{parts.scheme}://{parts.hostname}"
        raise BadSpec(
            f"Expected an S3 endpoint as http(s)://host[:port] without credentials, found {shown}.",
            "Correct STOKER_S3_ENDPOINT_URL and give the keys in AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY.",
        )
