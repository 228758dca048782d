"""Bundles in a bucket; the endpoint and the keys are those of checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from stoker.placement.bundles import BUNDLE_BYTES_MAXIMUM, check_size
from stoker.placement.environment import s3_endpoint_url, s3_region
from stoker.placement.errors import Unavailable
from stoker.placement.names import valid_digest

CONNECT_SECONDS = 5
READ_SECONDS = 20
ATTEMPTS = 3
_ABSENT = frozenset({"404", "NoSuchKey"})


class S3Bundles:
    """An object each, `prefix/<digest>.tar.gz`. Safe for many threads."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        endpoint = s3_endpoint_url(os.environ)
        config = Config(
            signature_version="s3v4",
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
            s3={"addressing_style": "auto" if endpoint is None else "path"},
            # Servers that are not Amazon's refuse the trailing checksums that newer clients add.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        region = s3_region(os.environ) or (None if endpoint is None else "us-east-1")
        with self._errors("a client"):
            self._client: Any = boto3.session.Session().client(
                "s3", endpoint_url=endpoint, region_name=region, config=config
            )

    def put(self, digest: str, archive: bytes) -> None:
        key = self._key(digest)
        check_size(len(archive), BUNDLE_BYTES_MAXIMUM)
        with self._errors(key):
            self._client.put_object(Bucket=self._bucket, Key=key, Body=archive)

    def get(self, digest: str) -> bytes | None:
        key = self._key(digest)
        with self._errors(key):
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=key)
            except ClientError as error:
                if str(error.response.get("Error", {}).get("Code", "")) in _ABSENT:
                    return None
                raise
            with closing(answer["Body"]) as body:
                payload: bytes = body.read(BUNDLE_BYTES_MAXIMUM)
        return payload

    def _key(self, digest: str) -> str:
        return f"{self._prefix}{valid_digest(digest)}.tar.gz"

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Errors of this tree instead of those of the libraries."""
        try:
            yield
        except (ClientError, BotoCoreError, Boto3Error, OSError) as error:
            raise Unavailable(
                f"Expected access to s3://{self._bucket}/{key}, found: {error}.",
                "Check the bucket in STOKER_BUNDLES, its endpoint and its keys.",
                retry_after_seconds=5,
            ) from error
