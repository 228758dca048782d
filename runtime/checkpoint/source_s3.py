"""A checkpoint below a prefix of an S3 bucket; any endpoint that speaks S3."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from stoker.placement.errors import CheckpointError, CheckpointMissing, StokerError
from stoker.runtime.checkpoint.manifest import check_name
from stoker.runtime.checkpoint.settings import CheckpointSettings
from stoker.runtime.checkpoint.source import LISTING_MAXIMUM, SourceFile
from stoker.runtime.checkpoint.source_access import ANSWERED_ATTEMPTS, access_of, errors
from stoker.runtime.checkpoint.source_range import RangeChanged, Wanted

PART_BYTES = 16 << 20
SIGNED_SECONDS = 300  # how long a signed request stays valid


class S3Source:
    """Reads objects below `s3://bucket/prefix`; a file's version is its ETag.

    A range read without a version pins the one that it meets: all that one source reads of a
    file is of one version.
    """

    def __init__(self, bucket: str, prefix: str, settings: CheckpointSettings) -> None:
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self.local_dir: Path | None = None
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._access = access_of(settings)
        self._met: dict[str, str] = {}

    def list(self) -> tuple[SourceFile, ...]:
        found = self._access.attempt(
            lambda client, *_: self._list(client), self.uri, answered_attempts=ANSWERED_ATTEMPTS
        )
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

        def on_bytes(count: int) -> None:
            nonlocal filled
            filled += count

        def on_version(found: str) -> None:
            pinned = version or self._met.setdefault(name, found)
            if found != pinned:
                raise RangeChanged(f"ETag {found:.60} instead of {pinned:.60}")

        def attempt(client: Any, deadline: float, last: bool) -> None:
            wanted = Wanted(
                offset + filled,
                into[filled:],
                version or self._met.get(name),
                on_version,
                on_bytes,
            )
            url = self._signed(client, name, wanted)
            self._access.ranges.read(url, wanted, deadline, expendable=not last)

        self._access.attempt(attempt, f"{self.uri}/{name}")

    def read_small(self, name: str, limit: int, version: str | None = None) -> bytes:
        check_name(name)
        pin = {} if version is None else {"IfMatch": version}

        def attempt(client: Any, *_: object) -> bytes:
            answer = client.get_object(Bucket=self._bucket, Key=self._prefix + name, **pin)
            with closing(answer["Body"]) as body:
                if answer["ContentLength"] > limit:
                    raise CheckpointError(
                        f"Expected at most {limit} bytes in {self.uri}/{name}, "
                        f"found {answer['ContentLength']}.",
                        "Remove the object from the model's prefix.",
                    )
                payload: bytes = body.read()
            return payload

        return self._access.attempt(
            attempt, f"{self.uri}/{name}", answered_attempts=ANSWERED_ATTEMPTS
        )

    def _signed(self, client: Any, name: str, wanted: Wanted) -> str:
        parameters = {"Bucket": self._bucket, "Key": self._prefix + name}
        parameters["Range"] = wanted.headers["Range"]
        if wanted.version is not None:
            parameters["IfMatch"] = wanted.version
        url: str = client.generate_presigned_url(
            "get_object", Params=parameters, ExpiresIn=SIGNED_SECONDS
        )
        return url

    def _list(self, client: Any) -> tuple[SourceFile, ...]:
        pages = client.get_paginator("list_objects_v2")
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
        self._access = access_of(settings)

    def put(self, name: str, path: Path, on_bytes: Callable[[int], None]) -> None:
        """Upload the file at `path`, in parts of 16 MiB; `on_bytes` gets each part's size."""
        check_name(name)
        transfer = TransferConfig(
            multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=8
        )
        key = self._prefix + name
        self._access.attempt(
            lambda client, *_: client.upload_file(
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
        with errors(where):
            answer = access_of(settings).client.list_buckets()
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


def _is_listed(name: str) -> bool:
    parts = name.split("/")
    return len(parts) <= 2 and all(part and not part.startswith(".") for part in parts)
