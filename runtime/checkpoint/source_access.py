"""The S3 client of each settings: its credentials, its tries, and what its failures mean."""

from __future__ import annotations

import functools
import http.client
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import boto3
import boto3.exceptions
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
)

from stoker.placement.errors import (
    CheckpointChanged,
    CheckpointForbidden,
    CheckpointMissing,
    SourceUnavailable,
    StokerError,
)
from stoker.runtime.checkpoint.settings import CheckpointSettings
from stoker.runtime.checkpoint.source_range import (
    CONNECT_SECONDS,
    READ_SECONDS,
    FellBehind,
    RangeBroken,
    RangeChanged,
    RangeReader,
    RangeRefused,
)

ATTEMPTS = 3
ANSWERED_ATTEMPTS = 5  # for small requests that an endpoint answers, if only by 5xx
BACKOFF_SECONDS = 0.2
BACKOFF_SECONDS_MAXIMUM = 1.0
SECONDS_MAXIMUM = 120.0
CONNECTIONS = 16

_FORBIDDEN = frozenset(
    ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken")
)
_MISSING = frozenset(("404", "NoSuchKey", "NoSuchBucket", "NotFound"))
_CHANGED = frozenset(("412", "PreconditionFailed"))
_T = TypeVar("_T")


class S3Access:
    """One client and the connections beside it, shared by every source of the same settings."""

    def __init__(self, settings: CheckpointSettings) -> None:
        self.ranges = RangeReader()
        self._settings = settings
        self._lock = threading.Lock()
        self._renewing = threading.Lock()
        self._client: Any = None
        self._refused: Any = None  # the client that was refused although it was new

    @property
    def client(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = _new_client(self._settings)
            return self._client

    def attempt(
        self,
        attempt: Callable[[Any, float, bool], _T],
        where: str,
        attempts: int = ATTEMPTS,
        answered_attempts: int = ATTEMPTS,
    ) -> _T:
        """`attempt(client, deadline, last)`, again after what may pass.

        Refused credentials are read anew once. Raises what `errors` makes of a failure.
        """
        deadline = time.monotonic() + SECONDS_MAXIMUM
        renewed = False
        number = 1
        while True:
            client = self.client
            try:
                with errors(where):
                    return attempt(client, deadline, number >= attempts)
            except CheckpointForbidden as error:
                if renewed or not isinstance(error.__cause__, ClientError | RangeRefused):
                    raise
                renewed = True
                number += 1
                done = self._renew(
                    client, error, lambda fresh: attempt(fresh, deadline, True), where
                )
                if done is not None:
                    return done[0]
            except SourceUnavailable as error:
                answered = isinstance(error.__cause__, ClientError)
                allowed = answered_attempts if answered else attempts
                if number >= allowed or time.monotonic() > deadline:
                    raise
                if not isinstance(error.__cause__, FellBehind):
                    _back_off(number)
                number += 1

    def _renew(
        self, stale: Any, refused: CheckpointForbidden, attempt: Callable[[Any], _T], where: str
    ) -> tuple[_T] | None:
        """The attempt with credentials read anew; None when it may be made once more.

        Of many that were refused at once, one asks whether the new credentials are accepted; the
        others wait for what it hears, so that bad ones cost one call more and not one each.
        """
        with self._renewing:
            if self._client is not stale:
                if self._client is self._refused:
                    raise refused
                return None
            fresh = _new_client(self._settings)
            with self._lock:
                self._client = fresh
            try:
                with errors(where):
                    return (attempt(fresh),)
            except CheckpointForbidden:
                self._refused = fresh
                raise
            except SourceUnavailable:
                return None


@functools.lru_cache(maxsize=8)
def access_of(settings: CheckpointSettings) -> S3Access:
    """The one access of these settings."""
    return S3Access(settings)


_client_lock = threading.Lock()


def _new_client(settings: CheckpointSettings) -> Any:
    custom = settings.s3_endpoint_url is not None
    config = Config(
        signature_version="s3v4",
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=CONNECTIONS,
        s3={"addressing_style": "path" if custom else "auto"},
        # Servers that are not Amazon's refuse the trailing checksums that newer clients add.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    region = settings.s3_region or ("us-east-1" if custom else None)
    # botocore's sessions are not safe to share while a client is made.
    with _client_lock, errors("the S3 client"):
        return boto3.session.Session().client(
            "s3", endpoint_url=settings.s3_endpoint_url, region_name=region, config=config
        )


def _back_off(number: int) -> None:
    seconds = min(BACKOFF_SECONDS * 2**number, BACKOFF_SECONDS_MAXIMUM)
    time.sleep(seconds * random.uniform(0.5, 1.0))  # noqa: S311


@contextmanager
def errors(where: str) -> Iterator[None]:
    """Errors of this tree instead of those of the libraries."""
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        raise _from_answer(status, code, where) from error
    except RangeRefused as error:
        raise _from_answer(error.status, error.code, where) from error
    except RangeChanged as error:
        raise _changed(where, str(error)) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise CheckpointForbidden(
            f"Expected credentials for {where}, found: {error}.",
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for the process that reads it.",
        ) from error
    except NoRegionError as error:
        raise CheckpointForbidden(
            f"Expected a region for {where}, found none.", "Set STOKER_S3_REGION."
        ) from error
    except boto3.exceptions.S3UploadFailedError as error:
        if isinstance(error.__context__, ClientError):
            with errors(where):
                raise error.__context__ from error
        raise _unavailable(where, str(error)) from error
    except (
        BotoCoreError,
        boto3.exceptions.Boto3Error,
        FellBehind,
        RangeBroken,
        http.client.HTTPException,
        OSError,
    ) as error:
        raise _unavailable(where, str(error) or type(error).__name__) from error


def _from_answer(status: int, code: str, where: str) -> StokerError:
    if code in _CHANGED or status == 412:
        return _changed(where, "another version")
    if code in _MISSING or status == 404:
        bucket = "its bucket does not exist" if code == "NoSuchBucket" else code or "404"
        return CheckpointMissing(
            f"Expected {where}, found: {bucket}.",
            "Correct the bucket and the prefix; a bucket that is missing must be made first.",
        )
    if code in _FORBIDDEN or status in (401, 403):
        return CheckpointForbidden(
            f"Expected access to {where}, found: {code or status}.",
            "Check the node's credentials (AWS_ACCESS_KEY_ID, …) and the bucket's policy.",
        )
    if status == 416:
        return _changed(where, "a shorter one")
    return _unavailable(where, f"{code} (HTTP {status})")


def _changed(where: str, found: str) -> CheckpointChanged:
    return CheckpointChanged(
        f"Expected the version of {where} that was pinned, found {found}.",
        "Deploy the function again to pin the model as it is now.",
    )


def _unavailable(where: str, found: str) -> SourceUnavailable:
    return SourceUnavailable(
        f"Expected to reach {where}, found: {found:.300}.",
        "Check that the S3 endpoint is up and that STOKER_S3_ENDPOINT_URL names it.",
        retry_after_seconds=5.0,
    )
