"""`save_file`: a dictionary of tensors as a safetensors file that loads without copies.

Data begins at a multiple of 4096 bytes, as in a packed checkpoint. Tensors whose size is a
multiple of 64 bytes come first, so all of them lie at multiples of 64; the rest follow by falling
element size, so each lies at a multiple of its own. No filler is needed, and any reader finds
exactly the tensors that were saved.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import orjson
import torch

from stoker.placement.errors import BadRequest, StorageFull
from stoker.runtime.checkpoint.manifest import DATA_ALIGNMENT_BYTES, TENSOR_ALIGNMENT_BYTES
from stoker.runtime.checkpoint.tensors import DTYPES
from stoker.runtime.durable import sync_folder

_METADATA = "__metadata__"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def save_file(
    tensors: Mapping[str, torch.Tensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Save the tensors to `path`, whole or not at all; an older file there is replaced.

    Tensors may be on any device and need not be contiguous; those that share memory are each
    written in full. `metadata` is strings by name, to which `format: pt` is added. BadRequest for
    what the format cannot hold, StorageFull if the file cannot be written.
    """
    _check(tensors, metadata or {})
    order = sorted(tensors, key=lambda name: _rank(tensors[name]))
    header = _header({name: tensors[name] for name in order}, metadata or {})
    target = Path(path).absolute()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with _removed_if_left(temporary), open(temporary, "xb", buffering=0) as file:
            _write(file, memoryview(header))
            for name in order:
                _write(file, _octets(tensors[name]))
            os.fsync(file.fileno())
            temporary.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        raise StorageFull(
            f"Expected to write {target}, found: {error.strerror}.",
            "Free space there, or choose another path.",
        ) from error


def _check(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    for name, tensor in tensors.items():
        if not isinstance(name, str) or name == _METADATA:
            raise BadRequest(
                f"Expected tensors by name, found {name!r:.80}.",
                f"Use text other than {_METADATA}.",
            )
        dense = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
        if not dense or tensor.is_meta or tensor.dtype not in _NAMES:
            found = f"{tensor.layout} {tensor.dtype} on {tensor.device}" if dense else type(tensor)
            raise BadRequest(
                f"Expected a dense tensor with data in {name!r:.80}, found {found}.",
                f"Convert it to a dense tensor of one of {', '.join(_NAMES.values())}.",
            )
    if not all(isinstance(each, str) for pair in metadata.items() for each in pair):
        raise BadRequest("Expected metadata of strings, found others.", "Encode them as JSON.")


def _rank(tensor: torch.Tensor) -> int:
    whole = tensor.nbytes % TENSOR_ALIGNMENT_BYTES == 0
    return -TENSOR_ALIGNMENT_BYTES if whole else -tensor.dtype.itemsize


def _header(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {_METADATA: {"format": "pt", **metadata}}
    position = 0
    for name, tensor in tensors.items():
        end = position + tensor.nbytes
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": _shape(tensor),
            "data_offsets": [position, end],
        }
        position = end
    text = orjson.dumps(entries)
    text += b" " * (-(8 + len(text)) % DATA_ALIGNMENT_BYTES)
    return len(text).to_bytes(8, "little") + text


def _shape(tensor: torch.Tensor) -> list[int]:
    shape = list(tensor.shape)
    if tensor.dtype == torch.float4_e2m1fn_x2:
        shape[-1] *= 2  # PyTorch counts pairs, the format elements
    return shape


def _octets(tensor: torch.Tensor) -> memoryview:
    if tensor.nbytes == 0:
        return memoryview(b"")
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().data


def _write(file: BinaryIO, data: memoryview) -> None:
    while len(data):
        data = data[file.write(data) :]


@contextlib.contextmanager
def _removed_if_left(temporary: Path) -> Iterator[None]:
    try:
        yield
    finally:
        temporary.unlink(missing_ok=True)
