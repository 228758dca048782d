"""Bundles, unpacked on this node once per digest."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Protocol

from stoker.placement.errors import StartFailed
from stoker.placement.names import valid_digest
from stoker.runtime.worker_start import zygote_environment

UNPACKED_BYTES_MAXIMUM = 64 << 20
MEMBERS_MAXIMUM = 4096
KEPT_MAXIMUM = 256
COMPILED_BYTES_MAXIMUM = 4 << 20
COMPILE_SECONDS_MAXIMUM = 20.0
_TEMPORARY_PREFIX = ".unpacking-"


class BundleReader(Protocol):
    """Where bundles come from."""

    def get(self, digest: str) -> bytes | None: ...


class CodeCache:
    """`directory/<sha256>` holds the files of the bundle <sha256>; safe for many threads."""

    def __init__(self, directory: Path, bundles: BundleReader) -> None:
        self._directory = directory
        self._bundles = bundles
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._prune()

    def open(self, digest: str) -> Path:
        """The folder of the archive with this SHA-256; StartFailed when there is none to trust."""
        target = self._directory / valid_digest(digest)
        if target.is_dir():
            os.utime(target)
            return target
        archive = self._bundles.get(digest)
        if archive is None:
            raise StartFailed(
                f"Expected the handler archive {digest} where bundles are kept, found none.",
                "Build and deploy the function again; every machine needs the same STOKER_BUNDLES.",
            )
        found = hashlib.sha256(archive).hexdigest()
        if found != digest:
            raise StartFailed(
                f"Expected a handler archive with SHA-256 {digest}, found {found}.",
                "Build and deploy the function again.",
            )
        return self._unpack(archive, target)

    def _unpack(self, archive: bytes, target: Path) -> Path:
        temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX, dir=self._directory))
        try:
            _extract(archive, temporary)
            temporary.chmod(0o755)
            try:
                temporary.rename(target)
            except OSError:
                if not target.is_dir():  # else another thread was faster
                    raise
        except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
            raise StartFailed(
                f"Expected a handler archive as tar.gz for {target.name}, found: {error}.",
                "Build and deploy the function again.",
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return target

    def _prune(self) -> None:
        """At the start nothing is in use: drop torn folders and all but the newest ones."""
        for torn in self._directory.glob(f"{_TEMPORARY_PREFIX}*"):
            shutil.rmtree(torn, ignore_errors=True)
        folders = sorted(self._directory.iterdir(), key=lambda path: path.stat().st_mtime)
        for old in folders[:-KEPT_MAXIMUM]:
            shutil.rmtree(old, ignore_errors=True)


def compile_sources(folder: Path) -> None:
    """Leaves bytecode beside the sources in `folder`, which no worker can write; blocks.

    It is done once, and by a process of its own: a source can be made to exhaust its compiler.
    What cannot be compiled is left to whoever imports it to explain.
    """
    sources = sum(path.stat().st_size for path in folder.rglob("*.py"))
    if sources > COMPILED_BYTES_MAXIMUM or any(folder.rglob("__pycache__")):
        return
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(
            [sys.executable, "-I", "-m", "compileall", "-q", "."],
            cwd=folder,
            env=zygote_environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=COMPILE_SECONDS_MAXIMUM,
            check=False,
        )


def _extract(archive: bytes, folder: Path) -> None:
    """Write the members below `folder`; only plain files and folders, within the bounds."""
    # Unpacked first and with a bound, because a header alone may claim any length.
    with gzip.GzipFile(fileobj=io.BytesIO(archive)) as packed:
        plain = packed.read(UNPACKED_BYTES_MAXIMUM + 1)
    if len(plain) > UNPACKED_BYTES_MAXIMUM:
        raise _refused(f"at most {UNPACKED_BYTES_MAXIMUM} unpacked bytes", "more")
    with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as members:
        for count, member in enumerate(members, 1):
            if count > MEMBERS_MAXIMUM:
                raise _refused(f"at most {MEMBERS_MAXIMUM} files", "more")
            target = folder / _checked_path(member)
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(members, member, target)


def _checked_path(member: tarfile.TarInfo) -> PurePosixPath:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\0" in member.name:
        raise _refused("paths inside the archive", f"{member.name!r:.200}")
    if not (member.isreg() or member.isdir()):
        raise _refused("plain files and folders", f"another kind at {member.name!r:.200}")
    return path


def _write(members: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    source = members.extractfile(member)
    assert source is not None  # a plain file has a reader
    with open(target, "xb") as file:
        shutil.copyfileobj(source, file)
        file.flush()
        os.fsync(file.fileno())
    target.chmod(0o755 if member.mode & 0o100 else 0o644)


def _refused(expected: str, found: str) -> StartFailed:
    return StartFailed(
        f"Expected {expected} in the handler archive, found {found}.",
        "Build the archive from plain files and deploy the function again.",
    )
