"""The settings of checkpoint loading, read once from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stoker.placement.environment import s3_endpoint_url, s3_region


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """`s3_endpoint_url` None means Amazon's own; credentials come from the usual AWS variables."""

    s3_endpoint_url: str | None = None
    s3_region: str | None = None

    @staticmethod
    def from_environment(environ: Mapping[str, str]) -> CheckpointSettings:
        """STOKER_S3_ENDPOINT_URL and STOKER_S3_REGION go before AWS's variables."""
        return CheckpointSettings(s3_endpoint_url(environ), s3_region(environ))
