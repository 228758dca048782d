"""`load_file`: a safetensors file as a dictionary of tensors, read by the native loader."""

from __future__ import annotations

import os

import torch

from stoker.native import header_bytes, parse_header
from stoker.runtime.checkpoint.bring import LocalFiles, OnProgress, Report, bring
from stoker.runtime.checkpoint.landing import check_device, land
from stoker.runtime.checkpoint.load_errors import told_about
from stoker.runtime.checkpoint.manifest import WeightFile, chunk_count, chunks_of
from stoker.runtime.checkpoint.own import Maker, Wanted
from stoker.runtime.checkpoint.source_file import version_of
from stoker.runtime.checkpoint.stopping import asynchronous
from stoker.runtime.checkpoint.tensors import check_cast, is_cast, tensor_place, tensor_view

_LENGTH_BYTES = 8


def load_file(
    path: str | os.PathLike[str],
    device: str | int | torch.device = "cpu",
    *,
    borrow: bool = True,
    dtype: torch.dtype | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, torch.Tensor]:
    """Load every tensor of a safetensors file, as `safetensors.torch.load_file` does.

    The tensors are writable and what is written stays in this process; on the CPU those of one
    file share one block of memory, which is freed with the last of them. With `borrow`, what the
    page cache holds is not copied, so the file must not be changed in place while the tensors
    live (to rename a new one over it is safe); without, the caller owns a copy.

    To a CUDA device the bytes go through a window of 128 MiB of pinned host memory, while the
    file is still being read; the tensors are views of one block of the device's memory.

    With another `dtype` than the file's, each floating-point tensor (float8 included, pairs of
    float4 not) is cast while the rest still comes, and every tensor has memory of its own. Peak
    memory is then the result, 192 MiB and the file's largest tensor.

    `on_progress(done_bytes, total_bytes)` is called in the thread that called, at most 20 times
    a second and once at the end, with done == total; what it raises ends the load. Raises
    CheckpointError (a file that is missing, forbidden, changing or malformed), SourceUnavailable,
    StorageFull, DeviceFailed, or BadRequest for a device that PyTorch does not reach and a dtype
    that is not float64, float32, bfloat16 or float16.
    """
    check_cast(dtype)
    name, target = os.fspath(path), check_device(device)
    with told_about(name):
        header, file_bytes, version = _read_header(name)
        entries = parse_header(header, file_bytes)
    places = [
        tensor_place(tensor, kind, shape, len(header) + begin, end - begin)
        for tensor, kind, shape, begin, end in entries
    ]
    origin = LocalFiles((name,), (version,))
    chunks = chunks_of([WeightFile(name, file_bytes, (None,) * chunk_count(file_bytes), version)])
    report = Report(on_progress, file_bytes)
    if is_cast(places, dtype):
        maker = Maker([Wanted(place) for place in places], dtype, target)
        bring(origin, chunks, borrow=borrow, on_ready=maker, report=report)
        return {place.name: maker.tensors[place.name] for place in places}
    memory = land(origin, chunks, target, borrow=borrow, report=report)
    return {place.name: tensor_view(memory, place).to(target) for place in places}


load_file_async = asynchronous(load_file)


def _read_header(name: str) -> tuple[bytes, int, str]:
    """The header, the file's size and its version."""
    with open(name, "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        start = file.read(_LENGTH_BYTES)
        rest_bytes = header_bytes(start, status.st_size) - _LENGTH_BYTES
        parts = [start]
        while rest_bytes > 0 and (part := file.read(rest_bytes)):
            parts.append(part)
            rest_bytes -= len(part)
        return b"".join(parts), status.st_size, version_of(status)
