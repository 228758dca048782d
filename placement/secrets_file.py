"""Secrets that our processes share by a file: made once, by whoever comes first."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from pathlib import Path

from stoker.placement.errors import BadRequest, StokerError

SECRET_BYTES = 32
SECRET_CHARACTERS_MINIMUM = 16


def read_or_create_secret(path: Path) -> str:
    """The secret in `path`, generated (0600, folder 0700) if there is none.

    Safe against others that do the same at the same time: the first one wins and all read its
    secret. StokerError if the file cannot be made or read, or holds too little.
    """
    try:
        if not path.exists():
            _create(path)
        return read_secret(path)
    except OSError as error:
        raise StokerError(
            f"Expected to keep a secret in {path}, found: {error.strerror}.",
            "Make the folder writable for the user that runs Stoker.",
        ) from error


def read_secret(path: Path) -> str:
    """The secret in `path` without white space around it; BadRequest if it is no secret."""
    try:
        secret = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "bytes that are no ASCII text"
        raise BadRequest(
            f"Expected a secret in {path}, found: {reason}.",
            "Start Stoker once on a loopback address to generate it, or write one there.",
        ) from error
    if len(secret) < SECRET_CHARACTERS_MINIMUM:
        raise BadRequest(
            f"Expected at least {SECRET_CHARACTERS_MINIMUM} characters in {path}, "
            f"found {len(secret)}.",
            "Delete the file, and Stoker generates a secret at the next start.",
        )
    return secret


def _create(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        # A link fails where a rename would replace what another process already read.
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        Path(temporary).unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
