"""Tensors of their own, made from what is read while the rest still comes.

A cast or a cut cannot be a view of the file's bytes. Each tensor is made as soon as its bytes are
there, and the memory behind it is given back: beyond the result, a load holds WINDOW_BYTES of the
source, or the largest tensor if that is more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from stoker.native import CHUNK_BYTES, Region
from stoker.runtime.checkpoint.bring import BATCH_CHUNKS
from stoker.runtime.checkpoint.tensors import TensorPlace, cast_dtype, tensor_view

WINDOW_BYTES = 8 * CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class Cut:
    """The part from `begin` to `end` of one dimension."""

    dimension: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Wanted:
    place: TensorPlace
    cut: Cut | None = None


class Maker:
    """`on_ready` of `bring`: makes tensors in the order of their bytes."""

    def __init__(
        self, wanted: Iterable[Wanted], dtype: torch.dtype | None, device: torch.device
    ) -> None:
        self._wanted = sorted(wanted, key=lambda each: (each.place.offset, each.place.end))
        self._made = 0
        self._discarded = 0
        self._dtype = dtype
        self._device = device
        self.tensors: dict[str, torch.Tensor] = {}

    def __call__(self, region: Region, ready_bytes: int) -> int:
        memory = torch.frombuffer(region, dtype=torch.uint8)
        while self._made < len(self._wanted):
            wanted = self._wanted[self._made]
            if wanted.place.end > ready_bytes:
                break
            self.tensors[wanted.place.name] = self._make(memory, wanted)
            self._made += 1
        if self._made == len(self._wanted):
            return len(region)
        following = self._wanted[self._made].place
        used = min(following.offset, ready_bytes) // CHUNK_BYTES * CHUNK_BYTES
        if used > self._discarded:
            region.discard(self._discarded, used - self._discarded)
            self._discarded = used
        return max(used + WINDOW_BYTES - BATCH_CHUNKS * CHUNK_BYTES, following.end)

    def _make(self, memory: torch.Tensor, wanted: Wanted) -> torch.Tensor:
        whole = tensor_view(memory, wanted.place)
        cut = wanted.cut
        part = whole if cut is None else whole.narrow(cut.dimension, cut.begin, cut.end - cut.begin)
        made = part.to(self._device, cast_dtype(part.dtype, self._dtype)).contiguous()
        # What was neither cast, moved nor cut still lies in memory that is given back.
        return made.clone() if made.untyped_storage().data_ptr() == memory.data_ptr() else made
