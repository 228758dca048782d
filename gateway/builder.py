"""The OpenFaaS Function Builder: from a build context in a tar to a bundle.

Of `context/` only the function's folder is kept: `context/function/**`, or `context/**` where
there is no such folder or only the latter has a known file, such as handler.py, at its top.
Nothing of the archive is ever unpacked to a disk.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import io
import posixpath
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from stoker.gateway.json_body import json_object
from stoker.placement.errors import BadJson, BadSpec
from stoker.placement.function_code import HandlerKind, entry_file, kind_of_code
from stoker.placement.function_packages import packages_of
from stoker.placement.records import ImageRecord, encode
from stoker.placement.store import Change, Entry

CONFIG_NAME = "com.openfaas.docker.config"
BUILD_BYTES_MAXIMUM = 64 * 1024 * 1024
FILES_MAXIMUM = 1_000
IMAGE_CHARACTERS_MAXIMUM = 512


class ImageStore(Protocol):
    """What the builder needs of the store."""

    def put(self, path: str, value: bytes) -> int: ...


class BundleSink(Protocol):
    """Where the builder puts archives."""

    def put(self, digest: str, archive: bytes) -> None: ...


class ChangeSink(Protocol):
    """What the builder needs of the view: its own writes are seen at once."""

    def apply(self, change: Change) -> None: ...


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    executable: bool


@dataclass(frozen=True, slots=True)
class Build:
    """A finished build: `archive` is a tar.gz, the same bytes for the same files."""

    image: str
    archive: bytes
    file_count: int
    kind: HandlerKind

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.archive).hexdigest()


def build(context: bytes) -> Build:
    """The handler archive of a build context; BadSpec or PayloadTooLarge saying what is wrong."""
    files = _read_tar(context)
    config = files.pop(CONFIG_NAME, None)
    if config is None:
        raise BadSpec(f"Expected {CONFIG_NAME} in the build context, found none.", "Add it.")
    image = _image_of(config.content)
    return _build(image, _handler_files(files))


def build_files(image: str, files: Mapping[str, bytes]) -> Build:
    """The handler archive of plain files; BadSpec or PayloadTooLarge saying what is wrong."""
    return _build(image, {name: _File(content, False) for name, content in files.items()})


def _build(image: str, files: dict[str, _File]) -> Build:
    kind = kind_of_code(files.__contains__)
    _check_entry(kind, files)
    packages_of(lambda name: files[name].content if name in files else None)
    return Build(image, _packed(files), len(files), kind)


def publish(made: Build, bundles: BundleSink, store: ImageStore, view: ChangeSink) -> ImageRecord:
    """Put the archive among the bundles, then the image that names it into the store."""
    bundles.put(made.digest, made.archive)
    image = ImageRecord(made.image, made.digest, made.kind)
    path, value = ImageRecord.path_of(image.image), encode(image)
    view.apply(Change(path, Entry(path, value, store.put(path, value))))
    return image


def _read_tar(context: bytes) -> dict[str, _File]:
    """Every file of the archive by its clean name; BadSpec for anything that is no plain file."""
    files: dict[str, _File] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(context), mode="r:") as archive:
            for member in archive:
                name = _clean_name(member.name)
                if member.isdir():
                    continue
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
                    raise BadSpec(
                        f"Expected plain files in the build context, found {name!r:.200} to be "
                        "a link, a device or a sparse file.",
                        "Replace it by a copy.",
                    )
                content = archive.extractfile(member)
                assert content is not None
                files[name] = _File(content.read(), bool(member.mode & 0o100))
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise BadSpec(
            f"Expected a tar as the build context, found: {error}.", "Send an uncompressed tar."
        ) from error
    return files


def _clean_name(name: str) -> str:
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise BadSpec(
            f"Expected relative paths without '..' in the build context, found {name!r:.200}.",
            "Pack the folder from inside.",
        )
    return posixpath.normpath(name)


def _image_of(config: bytes) -> str:
    try:
        image = json_object(config).get("image")
    except BadJson as error:
        raise BadSpec(f"{CONFIG_NAME}: {error.cause}", error.remedy) from error
    if not isinstance(image, str) or not 0 < len(image) <= IMAGE_CHARACTERS_MAXIMUM:
        raise BadSpec(f"Expected an image name in {CONFIG_NAME}, found {image!r:.80}.", "Set it.")
    return image


def _handler_files(files: dict[str, _File]) -> dict[str, _File]:
    """The function's folder: the innermost with a known file, or else the innermost of all."""
    folders = [
        {n.removeprefix(prefix): f for n, f in files.items() if n.startswith(prefix)}
        for prefix in ("context/function/", "context/")
    ]
    known = (f for f in folders if kind_of_code(f.__contains__) != "process")
    found = next(known, None) or next((f for f in folders if f), None)
    if not found:
        names = ", ".join(sorted(files)[:8]) or "nothing"
        raise BadSpec(
            f"Expected the function's files below context/function/ or context/, found {names}.",
            "Pack them there.",
        )
    if len(found) > FILES_MAXIMUM:
        raise BadSpec(
            f"Expected at most {FILES_MAXIMUM} files in the handler folder, found {len(found)}.",
            "Keep data out of the handler folder.",
        )
    return found


def _check_entry(kind: HandlerKind, files: dict[str, _File]) -> None:
    """BadSpec unless the file by which the code is of `kind` is Python, and says what it must."""
    entry = entry_file(kind, files.__contains__)
    if entry is None:
        return
    try:
        module = ast.parse(files[entry].content)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise BadSpec(
            f"Expected Python in {entry}, found at line {line}: "
            f"{getattr(error, 'msg', None) or error}.",
            "Correct it.",
        ) from error
    names = [name for statement in module.body for name in _defined(statement)]
    if kind == "openfaas" and "handle" not in names:
        raise BadSpec(
            f"Expected a function handle(event, context) in {entry}, "
            f"found {', '.join(names[:8]) or 'no definition'}.",
            "Define handle at the top level.",
        )


def _defined(statement: ast.stmt) -> list[str]:
    match statement:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return [name]
        case ast.ClassDef(name=name):
            return [name]
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return [(alias.asname or alias.name).split(".")[0] for alias in names]
        case ast.Assign(targets=targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
        case ast.If(body=body, orelse=orelse):
            return [name for inner in (*body, *orelse) for name in _defined(inner)]
        case ast.Try(body=body, handlers=handlers):
            excepted = [inner for handler in handlers for inner in handler.body]
            return [name for inner in (*body, *excepted) for name in _defined(inner)]
        case _:
            return []


def _packed(files: dict[str, _File]) -> bytes:
    """A tar.gz without times, owners and order of arrival: the same files, the same digest."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size = len(files[name].content)
            member.mode = 0o755 if files[name].executable else 0o644
            archive.addfile(member, io.BytesIO(files[name].content))
    return gzip.compress(tar.getvalue(), mtime=0)
