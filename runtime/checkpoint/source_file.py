"""A checkpoint in a folder of this machine."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from stoker.placement.errors import (
    CheckpointChanged,
    CheckpointError,
    CheckpointForbidden,
    CheckpointMissing,
    SourceUnavailable,
)
from stoker.runtime.checkpoint.manifest import check_name
from stoker.runtime.checkpoint.source import LISTING_MAXIMUM, SourceFile


class FileSource:
    """Files of one folder; symbolic links are followed, as Hugging Face's cache is made of them.

    A file's version is its modification time in nanoseconds and its size.
    """

    def __init__(self, path: Path) -> None:
        self.uri = "file://" + quote(str(path))
        self.local_dir: Path | None = path
        self._path = path

    def list(self) -> tuple[SourceFile, ...]:
        with _errors(self._path):
            found = []
            for name in self._names():
                status = (self._path / name).stat()
                if stat.S_ISREG(status.st_mode):
                    found.append(SourceFile(name, status.st_size, version_of(status)))
                if len(found) > LISTING_MAXIMUM:
                    raise CheckpointError(
                        f"Expected at most {LISTING_MAXIMUM} files in {self._path}, found more.",
                        "Name the folder of one model.",
                    )
        if not found:
            raise CheckpointMissing(
                f"Expected a model in {self._path}, found no file.", "Correct the path."
            )
        return tuple(sorted(found, key=lambda file: file.name))

    def read(self, name: str, offset: int, into: memoryview, version: str | None) -> None:
        check_name(name)
        path = self._path / name
        with _errors(path), open(path, "rb", buffering=0) as file:
            _check_version(path, os.fstat(file.fileno()), version)
            filled = 0
            while filled < len(into):
                count = os.preadv(file.fileno(), [into[filled:]], offset + filled)
                if count == 0:
                    raise CheckpointChanged(
                        f"Expected {offset + len(into)} bytes in {path}, found {offset + filled}.",
                        "Deploy the function again to pin the model as it is now.",
                    )
                filled += count

    def read_small(self, name: str, limit: int, version: str | None = None) -> bytes:
        check_name(name)
        path = self._path / name
        with _errors(path), open(path, "rb") as file:
            status = os.fstat(file.fileno())
            _check_version(path, status, version)
            if status.st_size > limit:
                raise CheckpointError(
                    f"Expected at most {limit} bytes in {path}, found {status.st_size}.",
                    "Remove the file from the model's folder.",
                )
            return file.read(limit)

    def _names(self) -> Iterator[str]:
        with os.scandir(self._path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if not entry.is_dir():
                    yield entry.name
                    continue
                with os.scandir(entry.path) as inner:
                    for below in inner:
                        if not below.name.startswith(".") and not below.is_dir():
                            yield f"{entry.name}/{below.name}"


def version_of(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns}-{status.st_size}"


def _check_version(path: Path, status: os.stat_result, version: str | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointMissing(f"Expected a regular file at {path}.", "Correct the path.")
    if version is not None and version_of(status) != version:
        raise CheckpointChanged(
            f"Expected version {version} of {path}, found {version_of(status)}.",
            "Deploy the function again to pin the model as it is now.",
        )


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP):
            raise CheckpointMissing(
                f"Expected {path}, found: {error.strerror}.", "Correct the path."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise CheckpointForbidden(
                f"Expected to read {path}, found: {error.strerror}.",
                "Let the user that runs the node read the model's folder.",
            ) from error
        raise SourceUnavailable(
            f"Expected to read {path}, found: {error.strerror} (errno {error.errno}).",
            "Check the file system that holds the model.",
        ) from error
