"""Where checkpoints come from: a folder of named files that can be read by ranges.

Contract (tests/runtime/checkpoint/test_source_contract.py holds it for every source):

- `list` names every regular file at most one folder deep, hidden ones left out, with its size and
  a version that changes when the file does. Nothing there at all is CheckpointMissing.
- `read` fills the whole buffer or raises. With a version, bytes of another version are refused
  as CheckpointChanged. A file that is gone is CheckpointMissing.
- What may succeed later is SourceUnavailable; what credentials forbid is CheckpointForbidden.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import SplitResult, unquote, urlsplit

from stoker.placement.errors import BadSpec, StokerError
from stoker.runtime.checkpoint.settings import CheckpointSettings

LISTING_MAXIMUM = 10_000
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_UNSOUND = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True, slots=True)
class SourceFile:
    name: str
    bytes: int
    version: str


class Source(Protocol):
    uri: str
    local_dir: Path | None  # where the files lie, when they can be read in place

    def list(self) -> tuple[SourceFile, ...]: ...

    def read(self, name: str, offset: int, into: memoryview, version: str | None) -> None:
        """Fill `into` with the bytes of `name` from `offset` on."""
        ...

    def read_small(self, name: str, limit: int, version: str | None = None) -> bytes:
        """The whole file; CheckpointError when it has more than `limit` bytes."""
        ...


OpenSource = Callable[[str], Source]


def open_source(uri: str, settings: CheckpointSettings | None = None) -> Source:
    """The source at `file:///absolute/path` or `s3://bucket/prefix`; BadSpec for anything else."""
    parts = _split(uri)
    if parts.scheme == "file":
        from stoker.runtime.checkpoint.source_file import FileSource

        return FileSource(file_path(uri))
    from stoker.runtime.checkpoint.source_s3 import S3Source

    bucket, prefix = s3_location(uri)
    return S3Source(bucket, prefix, settings or CheckpointSettings())


def open_model(uri: str | os.PathLike[str]) -> Source:
    """The source at a URI or a local path, S3 being found by the environment."""
    text = os.fspath(uri)
    if "://" not in text:
        text = Path(text).expanduser().absolute().as_uri()
    return open_source(text, CheckpointSettings.from_environment(os.environ))


def prepare_s3(settings: CheckpointSettings) -> None:
    """Make the S3 client ahead of need, which takes 0.3 s; what fails now fails again in use."""
    if settings == CheckpointSettings():
        return
    from stoker.runtime.checkpoint.source_access import access_of

    with contextlib.suppress(StokerError):
        _ = access_of(settings).client


def file_path(uri: str) -> Path:
    """The absolute path that a file:// URI names."""
    parts = _split(uri)
    path = Path(unquote(parts.path))
    if parts.scheme != "file" or parts.netloc or not path.is_absolute():
        raise _refused(uri, "file:///absolute/path")
    return path


def s3_location(uri: str) -> tuple[str, str]:
    """Bucket and prefix (without slashes at its ends) that an s3:// URI names."""
    parts = _split(uri)
    prefix = parts.path.strip("/")
    if parts.scheme != "s3" or not _BUCKET.fullmatch(parts.netloc) or len(prefix) > 900:
        raise _refused(uri, "s3://bucket/prefix")
    return parts.netloc, prefix


def _split(uri: str) -> SplitResult:
    if len(uri) > 2048 or _UNSOUND.search(uri):
        raise _refused(uri, "a model URI of at most 2048 printable characters")
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise _refused(uri, "s3://bucket/prefix or file:///absolute/path") from error
    if "@" in parts.netloc:
        raise BadSpec(
            f"Expected a {parts.scheme}:// URI without credentials, found some in it.",
            "Give the keys in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
        )
    unsound = parts.query or parts.fragment or ".." in unquote(parts.path).split("/")
    if parts.scheme not in ("s3", "file") or unsound:
        raise _refused(uri, "s3://bucket/prefix or file:///absolute/path")
    return parts


def _refused(uri: str, expected: str) -> BadSpec:
    return BadSpec(
        f"Expected {expected}, found {uri!r:.120}.",
        "Name the model as s3://bucket/prefix or file:///absolute/path.",
    )
