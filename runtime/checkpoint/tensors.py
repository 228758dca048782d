"""Tensors of a checkpoint as views of the memory that holds its bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from stoker.placement.errors import BadRequest, CheckpointError

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
_CAST_TARGETS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where one tensor lies in the checkpoint's address space, in bytes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    byte_count: int

    @property
    def end(self) -> int:
        return self.offset + self.byte_count


def tensor_place(
    name: str, dtype: str, shape: Sequence[int], offset: int, byte_count: int
) -> TensorPlace:
    """The place of a tensor of a safetensors dtype; CheckpointError when torch lacks that."""
    if dtype not in DTYPES:
        raise CheckpointError(
            f"Expected tensors of a dtype that PyTorch has, found {dtype} in {name}.",
            f"Convert the checkpoint to one of {', '.join(DTYPES)}.",
        )
    in_torch = _packed_pairs(name, tuple(shape)) if dtype == "F4" else tuple(shape)
    return TensorPlace(name, DTYPES[dtype], in_torch, offset, byte_count)


def tensor_view(memory: torch.Tensor, place: TensorPlace) -> torch.Tensor:
    """The tensor as a view of `memory` (uint8); a copy where it lies misaligned."""
    if place.byte_count == 0:
        return torch.empty(place.shape, dtype=place.dtype)
    part = memory[place.offset : place.end]
    # Kernels expect elements at multiples of their size, which the format does not promise.
    if part.data_ptr() % place.dtype.itemsize:
        part = part.clone()
    return part.view(place.dtype).view(place.shape)


def tensor_views(memory: torch.Tensor, places: Iterable[TensorPlace]) -> dict[str, torch.Tensor]:
    return {place.name: tensor_view(memory, place) for place in places}


def check_cast(dtype: torch.dtype | None) -> None:
    """Refuse a dtype that weights cannot be cast to while they load."""
    if dtype is not None and dtype not in _CAST_TARGETS:
        raise BadRequest(
            f"Expected a dtype to cast to among {', '.join(map(str, _CAST_TARGETS))}, "
            f"found {dtype!r:.60}.",
            "Leave the dtype out to keep the checkpoint's own, and convert afterwards.",
        )


def cast_dtype(stored: torch.dtype, asked: torch.dtype | None) -> torch.dtype:
    """What a tensor becomes: `asked` if it is floating-point, and not pairs of four bits."""
    if asked is None or not stored.is_floating_point or stored == torch.float4_e2m1fn_x2:
        return stored
    return asked


def is_cast(places: Iterable[TensorPlace], asked: torch.dtype | None) -> bool:
    """Whether any of the tensors is stored in another dtype than it is to have."""
    return any(cast_dtype(place.dtype, asked) != place.dtype for place in places)


def _packed_pairs(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of four-bit elements as PyTorch counts them: two in each along the last axis."""
    if not shape or shape[-1] % 2 != 0:
        raise CheckpointError(
            f"Expected F4 tensors with an even last dimension, found shape {shape} of {name}.",
            "Pad the last dimension to an even length.",
        )
    return (*shape[:-1], shape[-1] // 2)
