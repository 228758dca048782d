"""`load_file`: a safetensors file as a dictionary of tensors, read by the native loader."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stoker.native import (
    CHUNK_BYTES,
    HeaderError,
    Load,
    Progress,
    ReadRequest,
    Region,
    header_bytes,
    parse_header,
)
from stoker.placement.errors import (
    CheckpointChanged,
    CheckpointError,
    CheckpointForbidden,
    CheckpointMissing,
    HeaderInvalid,
    SourceUnavailable,
    StorageFull,
)

READ_THREADS = 4
_LENGTH_BYTES = 8

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F4": torch.float4_e2m1fn_x2,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}


def load_file(
    path: str | os.PathLike[str],
    device: str | int | torch.device = "cpu",
    *,
    borrow: bool = True,
) -> dict[str, torch.Tensor]:
    """Load every tensor of a safetensors file, as `safetensors.torch.load_file` does.

    The tensors are writable and what is written stays in this process; on the CPU those of one
    file share one block of memory, which is freed with the last of them. With `borrow`, what the
    page cache holds is not copied, so the file must not be changed in place while the tensors
    live (to rename a new one over it is safe); without, the caller owns a copy. Raises
    CheckpointError (a file that is missing, forbidden, changing or malformed), SourceUnavailable
    or StorageFull.
    """
    name = os.fspath(path)
    with told_about(name):
        header, file_bytes = _read_header(name)
        entries = parse_header(header, file_bytes)
        region = Region(file_bytes)
        _read(name, region, borrow)
    if memoryview(region)[: len(header)] != header:
        raise CheckpointChanged(
            f"Expected {name} to stay as it was while it was read; its header changed.",
            "Write a new file under another name and rename it into place.",
        )
    target = torch.device(device)
    return {
        tensor_name: _tensor(name, region, dtype, shape, len(header) + begin, end - begin).to(
            target
        )
        for tensor_name, dtype, shape, begin, end in entries
    }


def _read(name: str, region: Region, borrow: bool) -> None:
    offsets = range(0, len(region), CHUNK_BYTES)
    sizes = [min(CHUNK_BYTES, len(region) - offset) for offset in offsets]
    progress = Progress(len(sizes), len(region))
    load = Load.into_region(region, sizes, [None] * len(sizes), progress, borrow)
    load.read([ReadRequest(name, at, n) for n, at in enumerate(offsets)], READ_THREADS)


def _read_header(name: str) -> tuple[bytes, int]:
    with open(name, "rb", buffering=0) as file:
        file_bytes = os.fstat(file.fileno()).st_size
        start = file.read(_LENGTH_BYTES)
        rest_bytes = header_bytes(start, file_bytes) - _LENGTH_BYTES
        parts = [start]
        while rest_bytes > 0 and (part := file.read(rest_bytes)):
            parts.append(part)
            rest_bytes -= len(part)
        return b"".join(parts), file_bytes


def _tensor(
    name: str, region: Region, dtype_name: str, shape: tuple[int, ...], offset: int, byte_count: int
) -> torch.Tensor:
    dtype = DTYPES.get(dtype_name)
    if dtype is None:
        raise CheckpointError(
            f"Expected dtypes that PyTorch has in {name}, found {dtype_name}.",
            "Convert the checkpoint to another dtype.",
        )
    if dtype_name == "F4":
        shape = _packed_pairs(name, shape)
    if byte_count == 0:
        return torch.empty(shape, dtype=dtype)
    octets = torch.frombuffer(region, dtype=torch.uint8, count=byte_count, offset=offset)
    # Kernels expect elements at multiples of their size, which the format does not promise.
    if offset % dtype.itemsize != 0:
        octets = octets.clone()
    return octets.view(dtype).view(shape)


def _packed_pairs(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of four-bit elements as PyTorch counts them: two in each along the last axis."""
    if not shape or shape[-1] % 2 != 0:
        raise CheckpointError(
            f"Expected F4 tensors with an even last dimension in {name}, found shape {shape}.",
            "Pad the last dimension to an even length.",
        )
    return (*shape[:-1], shape[-1] // 2)


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
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
            raise CheckpointMissing(
                f"Expected a safetensors file at {name}, found none: {reason}.", "Check the path."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise CheckpointForbidden(
                f"Expected to be allowed to read {name}: {reason}.", "Check its permissions."
            ) from error
        if error.errno == errno.ENOMEM:
            raise StorageFull(
                f"Expected memory for the whole of {name}: {reason}.", "Free memory or use more."
            ) from error
        raise SourceUnavailable(
            f"Expected to read {name} to its end: {reason}.", "Check the disk, then try again."
        ) from error
