"""What loads raise, whatever the file system, the native loader or the driver said."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from stoker.native import DeviceError, DeviceOutOfMemory, HeaderError
from stoker.placement.errors import (
    CheckpointForbidden,
    CheckpointMissing,
    DeviceFailed,
    HeaderInvalid,
    SourceUnavailable,
    StorageFull,
)


@contextmanager
def told_about(name: str) -> Iterator[None]:
    """Turn what the file system and the native loader raise into errors of Stoker."""
    try:
        yield
    except HeaderError as error:
        raise HeaderInvalid(
            f"Expected a safetensors header in {name}, but {error}.",
            "Write the file again with safetensors.",
            kind=error.kind,
            offset=error.offset,
        ) from error
    except OSError as error:
        where = os.fsdecode(error.filename) if error.filename else name
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
            raise CheckpointMissing(
                f"Expected a safetensors file at {where}, found none: {reason}.", "Check the path."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise CheckpointForbidden(
                f"Expected to be allowed to read {where}: {reason}.", "Check its permissions."
            ) from error
        if error.errno == errno.ENOMEM:
            raise StorageFull(
                f"Expected memory for the whole of {where}: {reason}.", "Free memory or use more."
            ) from error
        raise SourceUnavailable(
            f"Expected to read {where} to its end: {reason}.", "Check the disk, then try again."
        ) from error


@contextmanager
def told_about_device(ordinal: int) -> Iterator[None]:
    """Turn what the CUDA driver says into errors of Stoker."""
    try:
        yield
    except DeviceOutOfMemory as error:
        raise StorageFull(
            f"Expected memory for the weights on CUDA device {ordinal} and for the window before "
            f"it, found: {error}.",
            "Free memory of the device, or load a smaller model.",
        ) from error
    except DeviceError as error:
        raise DeviceFailed(
            f"Expected CUDA device {ordinal} to take the weights, found: {error}.",
            "Check the device with nvidia-smi; load to the CPU meanwhile.",
        ) from error
