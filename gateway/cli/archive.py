"""Packs a handler folder as the Function Builder API takes it.

    com.openfaas.docker.config    JSON: image, buildArgs
    context/template.yml ...      what the template holds beside its function folder
    context/function/...          the handler folder

The same folder gives the same bytes: times and owners are left out.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

from stoker.gateway.cli.stack import StackFunction
from stoker.placement.errors import BadSpec

ARCHIVE_BYTES_MAXIMUM = 64 << 20
FILES_MAXIMUM = 10_000
_LEFT_OUT = {"__pycache__", ".git", ".func", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache"}


def build_archive(function: StackFunction) -> bytes:
    """The uncompressed tar of `function`, which has a handler folder; BadSpec if it cannot be."""
    assert function.handler is not None
    config = {"image": function.image, "buildArgs": dict(function.build_args)}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        _add(archive, "com.openfaas.docker.config", json.dumps(config).encode(), 0o644)
        if function.template is None:
            # What the gateway needs of a template is its name; the template itself is its own.
            _add(archive, "context/template.yml", f"language: {function.lang}\n".encode(), 0o644)
        else:
            for path in _files(function.template):
                relative = path.relative_to(function.template)
                if relative.parts[0] != "function":
                    _add_file(archive, f"context/{relative.as_posix()}", path)
        for path in _files(function.handler):
            relative = path.relative_to(function.handler)
            _add_file(archive, f"context/function/{relative.as_posix()}", path)
            if buffer.tell() > ARCHIVE_BYTES_MAXIMUM:
                raise BadSpec(
                    f"Expected at most {ARCHIVE_BYTES_MAXIMUM >> 20} MiB in "
                    f"{function.handler}, found more.",
                    "Keep models out of the handler folder: name them in stoker/model.",
                )
    return buffer.getvalue()


def _files(folder: Path) -> Iterator[Path]:
    count = 0
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if _LEFT_OUT.intersection(relative.parts) or path.suffix == ".pyc":
            continue
        if path.is_symlink():
            raise BadSpec(
                f"Expected files and folders in {folder}, found the link {relative}.",
                "Put the file itself there.",
            )
        if path.is_file():
            count += 1
            if count > FILES_MAXIMUM:
                raise BadSpec(f"Expected at most {FILES_MAXIMUM} files in {folder}, found more.")
            yield path


def _add_file(archive: tarfile.TarFile, name: str, path: Path) -> None:
    try:
        payload = path.read_bytes()
        mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
    except OSError as error:
        raise BadSpec(f"Expected to read {path}, found: {error.strerror}.") from error
    _add(archive, name, payload, mode)


def _add(archive: tarfile.TarFile, name: str, payload: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(payload)
    entry.mode = mode
    archive.addfile(entry, io.BytesIO(payload))
