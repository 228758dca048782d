"""A checkpoint below a prefix of an S3 bucket; any endpoint that speaks S3."""

from __future__ import annotations

import functools
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import boto3
import boto3.exceptions
from boto3.s3.transfer import TransferConfig
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
    CheckpointError,
    CheckpointForbidden,
    CheckpointMissing,
    SourceUnavailable,
    StokerError,
)
from stoker.runtime.checkpoint.manifest import check_name
from stoker.runtime.checkpoint.settings import CheckpointSettings
from stoker.runtime.checkpoint.source import LISTING_MAXIMUM, SourceFile

ATTEMPTS = 3
BACKOFF_SECONDS = 0.2
CONNECT_SECONDS = 5
READ_SECONDS = 10
RANGE_SECONDS_MAXIMUM = 120.0  # a range that only trickles is a failed one
PIECE_BYTES = 1 << 20
CONNECTIONS = 16
PART_BYTES = 16 << 20

_FORBIDDEN = frozenset(
    ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken")
)
_MISSING = frozenset(("404", "NoSuchKey", "NoSuchBucket", "NotFound"))
_CHANGED = frozenset(("412", "PreconditionFailed"))
_T = TypeVar("_T")


class S3Source:
    """Reads objects below `s3://bucket/prefix`; a file's version is its ETag."""

    def __init__(self, bucket: str, prefix: str, settings: CheckpointSettings) -> None:
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self.local_dir: Path | None = None
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._settings = settings

    def list(self) -> tuple[SourceFile, ...]:
        found = _attempts(lambda _: self._list(), self.uri)
        if not found:
            raise CheckpointMissing(
                f"Expected a model at {self.uri}, found no object.",
                "Correct the prefix, or upload the model with `stoker model push`.",
            )
        return found

    def read(self, name: str, offset: int, into: memoryview, version: str | None) -> None:
        """Fill `into`; a failed attempt goes on where the one before it broke off."""
        check_name(name)
        if not len(into):
            return
        filled = 0

        def attempt(deadline: float) -> None:
            nonlocal filled
            for count in self._stream(name, offset + filled, into[filled:], version):
                filled += count
                if time.monotonic() > deadline:
                    raise _TooSlow
            if filled < len(into):
                raise _TooShort

        _attempts(attempt, f"{self.uri}/{name}")

    def read_small(self, name: str, limit: int, version: str | None = None) -> bytes:
        check_name(name)

        def attempt(_: float) -> bytes:
            answer = self._get(name, version)
            with closing(answer["Body"]) as body:
                if answer["ContentLength"] > limit:
                    raise CheckpointError(
                        f"Expected at most {limit} bytes in {self.uri}/{name}, "
                        f"found {answer['ContentLength']}.",
                        "Remove the object from the model's prefix.",
                    )
                payload: bytes = body.read()
            return payload

        return _attempts(attempt, f"{self.uri}/{name}")

    def _stream(
        self, name: str, offset: int, into: memoryview, version: str | None
    ) -> Iterator[int]:
        last = offset + len(into) - 1
        answer = self._get(name, version, Range=f"bytes={offset}-{last}")
        if not str(answer.get("ContentRange", "")).startswith(f"bytes {offset}-{last}/"):
            raise CheckpointChanged(
                f"Expected bytes {offset} to {last} of {self.uri}/{name}, "
                f"found {answer.get('ContentRange')!r:.60}.",
                "Deploy the function again to pin the model as it is now.",
            )
        with closing(answer["Body"]) as body:
            position = 0
            while position < len(into):
                count = body.readinto(into[position : position + PIECE_BYTES])
                if not count:
                    return
                position += count
                yield count

    def _get(self, name: str, version: str | None, **arguments: Any) -> Any:
        if version is not None:
            arguments["IfMatch"] = version
        key = self._prefix + name
        return client_of(self._settings).get_object(Bucket=self._bucket, Key=key, **arguments)

    def _list(self) -> tuple[SourceFile, ...]:
        pages = client_of(self._settings).get_paginator("list_objects_v2")
        found: dict[str, SourceFile] = {}
        for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
            for entry in page.get("Contents", ()):
                name = entry["Key"].removeprefix(self._prefix)
                if _is_listed(name):
                    found[name] = SourceFile(name, entry["Size"], entry["ETag"])
            if len(found) > LISTING_MAXIMUM:
                raise CheckpointError(
                    f"Expected at most {LISTING_MAXIMUM} objects below {self.uri}, found more.",
                    "Name the prefix of one model.",
                )
        return tuple(found[name] for name in sorted(found))


class S3Folder:
    """Writes objects below `s3://bucket/prefix`."""

    def __init__(self, bucket: str, prefix: str, settings: CheckpointSettings) -> None:
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._settings = settings

    def put(self, name: str, path: Path, on_bytes: Callable[[int], None]) -> None:
        """Upload the file at `path`, in parts of 16 MiB; `on_bytes` gets each part's size."""
        check_name(name)
        transfer = TransferConfig(
            multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=8
        )
        client = client_of(self._settings)
        key = self._prefix + name
        _attempts(
            lambda _: client.upload_file(
                str(path), self._bucket, key, Callback=on_bytes, Config=transfer
            ),
            f"{self.uri}/{name}",
            attempts=1,  # the transfer retries its own parts, and `on_bytes` must not count twice
        )


@dataclass(frozen=True, slots=True)
class S3Probe:
    """`server_date` is the answer's Date header, there as soon as a server answered at all."""

    buckets: int
    refused: StokerError | None
    may_not_list: bool  # the credentials are known, but this is not among their rights
    server_date: str | None


def probe(settings: CheckpointSettings) -> S3Probe:
    """Ask once for the list of buckets."""
    where = settings.s3_endpoint_url or "Amazon S3"
    try:
        answer = _attempts(lambda _: client_of(settings).list_buckets(), where, attempts=1)
    except StokerError as error:
        cause = error.__cause__
        said = cause.response if isinstance(cause, ClientError) else {}
        code = said.get("Error", {}).get("Code")
        return S3Probe(0, error, code == "AccessDenied", _date_of(said))
    return S3Probe(len(answer.get("Buckets", ())), None, False, _date_of(answer))


def _date_of(answer: Mapping[str, Any]) -> str | None:
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    found: str | None = headers.get("date")
    return found


class _TooSlow(Exception):
    """A range took longer than RANGE_SECONDS_MAXIMUM."""


class _TooShort(Exception):
    """The body ended before the range did."""


_client_lock = threading.Lock()


def client_of(settings: CheckpointSettings) -> Any:
    """The one client of these settings."""
    with _client_lock:  # botocore's sessions are not safe to share while a client is made
        return _new_client(settings)


@functools.lru_cache(maxsize=8)
def _new_client(settings: CheckpointSettings) -> Any:
    custom = settings.s3_endpoint_url is not None
    config = Config(
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
    with _errors("the S3 client"):
        return boto3.session.Session().client(
            "s3", endpoint_url=settings.s3_endpoint_url, region_name=region, config=config
        )


def _attempts(attempt: Callable[[float], _T], where: str, attempts: int = ATTEMPTS) -> _T:
    """`attempt(deadline)`, again after what may pass, at most `attempts` times."""
    deadline = time.monotonic() + RANGE_SECONDS_MAXIMUM
    for number in range(1, attempts + 1):
        try:
            with _errors(where):
                return attempt(deadline)
        except SourceUnavailable:
            if number == attempts or time.monotonic() > deadline:
                raise
            time.sleep(BACKOFF_SECONDS * 2**number * random.uniform(0.5, 1.0))  # noqa: S311
    raise AssertionError("unreachable: the last attempt returns or raises")


@contextmanager
def _errors(where: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        raise _from_answer(error, where) from error
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
            raise _from_answer(error.__context__, where) from error
        raise _unavailable(where, str(error)) from error
    except _TooSlow as error:
        raise _unavailable(where, f"no end of the range in {RANGE_SECONDS_MAXIMUM} s") from error
    except _TooShort as error:
        raise _unavailable(where, "a body shorter than its range") from error
    except (BotoCoreError, boto3.exceptions.Boto3Error, OSError) as error:
        raise _unavailable(where, str(error)) from error


def _from_answer(error: ClientError, where: str) -> StokerError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in _CHANGED or status == 412:
        return CheckpointChanged(
            f"Expected the version of {where} that was pinned, found another.",
            "Deploy the function again to pin the model as it is now.",
        )
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
        return CheckpointChanged(
            f"Expected {where} to be as long as it was, found it shorter.",
            "Deploy the function again to pin the model as it is now.",
        )
    return _unavailable(where, f"{code} (HTTP {status})")


def _unavailable(where: str, found: str) -> SourceUnavailable:
    return SourceUnavailable(
        f"Expected to reach {where}, found: {found:.300}.",
        "Check that the S3 endpoint is up and that STOKER_S3_ENDPOINT_URL names it.",
        retry_after_seconds=5.0,
    )


def _is_listed(name: str) -> bool:
    parts = name.split("/")
    return len(parts) <= 2 and all(part and not part.startswith(".") for part in parts)
