"""Which bytes of a checkpoint one rank or stage of a split needs.

A tensor-parallel split cuts a tensor along the dimension that the model's own plan names; what
the plan does not cut is whole on every rank. A pipeline split deals the layers out in the order
of first use, stage s of S getting layers floor(s * L / S) up to floor((s + 1) * L / S). A tensor
outside the layers goes where it is first used: embeddings to the first stage, final norm and head
to the last, a tied weight to both. What no forward pass uses stays with its layer, else with the
first stage.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from stoker.placement.errors import BadRequest, CheckpointError
from stoker.runtime.checkpoint.manifest import (
    CHUNK_BYTES,
    ChunkEntry,
    Manifest,
    TensorEntry,
    engine_tensors,
)
from stoker.runtime.checkpoint.own import Cut, Wanted
from stoker.runtime.checkpoint.tensors import TensorPlace, tensor_place
from stoker.runtime.checkpoint.trace import Trace

_BLOCK = re.compile(r"(?:^|.*\.)(?:layers?|h|blocks?)\.\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class Share:
    """Part number `index` of `count`."""

    index: int
    count: int

    def range_of(self, length: int) -> tuple[int, int]:
        return length * self.index // self.count, length * (self.index + 1) // self.count


def share(name: str, pair: tuple[int, int]) -> Share:
    """The share that a caller names; BadRequest unless 0 <= index < count."""
    index, count = pair
    if not 0 <= index < count:
        raise BadRequest(
            f"Expected {name} as (index, count) with 0 <= index < count, found {pair!r:.60}.",
            "Count ranks and stages from 0.",
        )
    return Share(index, count)


def dimensions(manifest: Manifest, traced: Trace | None) -> dict[str, int | None]:
    """The dimension that a tensor-parallel split cuts: by the manifest, or by the model's plan."""
    return {
        t.name: t.tensor_parallel_dimension
        if traced is None
        else traced.tensor_parallel_dimension(t.name, len(t.shape))
        for t in engine_tensors(manifest)
    }


def stage_tensors(manifest: Manifest, traced: Trace, stage: Share) -> list[TensorEntry]:
    """The tensors of one pipeline stage, in the manifest's order."""
    stored = {tensor.name: tensor for tensor in engine_tensors(manifest)}
    blocks = list(dict.fromkeys(filter(None, map(_block, traced.order))))
    if len(blocks) < stage.count:
        raise BadRequest(
            f"Expected at most as many pipeline stages as the model's {len(blocks)} layers, "
            f"found {stage.count}.",
            "Use fewer stages.",
        )
    begin, end = stage.range_of(len(blocks))
    mine, seen, at = set[str](), set[str](), 0
    for name in traced.order:
        block = _block(name)
        if block is not None:
            at = blocks.index(block)
        found, tied = traced.stored_names(name, stored)
        seen.update(found or tied)
        if begin <= at < end:
            mine.update(found or tied)
    kept = set(blocks[begin:end]) | ({None} if stage.index == 0 else set[str | None]())
    for name in stored.keys() - seen:
        block = _block(name) if _block(name) in blocks else None
        if block in kept:
            mine.add(name)
    return [tensor for tensor in stored.values() if tensor.name in mine]


def _block(name: str) -> str | None:
    found = _BLOCK.match(name)
    return found[0] if found else None


@dataclass(frozen=True, slots=True)
class Selection:
    """The chunks to bring, numbered anew, and where in them the wanted tensors lie."""

    chunks: tuple[ChunkEntry, ...]
    wanted: tuple[Wanted, ...]


def select(
    manifest: Manifest,
    tensors: Sequence[TensorEntry],
    cut_dimensions: Mapping[str, int | None],
    rank: Share,
) -> Selection:
    """What a rank needs of `tensors`. CheckpointError for a dimension that does not divide."""
    spans = [_span(tensor, cut_dimensions.get(tensor.name), rank) for tensor in tensors]
    bases = manifest.file_bases
    numbers = sorted(set(chain.from_iterable(_numbers(span, bases) for span in spans)))
    ordinals = {number: n for n, number in enumerate(numbers)}
    chunks = tuple(replace(manifest.chunks[number], ordinal=n) for number, n in ordinals.items())
    return Selection(chunks, tuple(_moved(span, bases, ordinals) for span in spans))


@dataclass(frozen=True, slots=True)
class _Span:
    """`wanted.place` counts from the start of file number `file`."""

    file: int
    wanted: Wanted


def _span(tensor: TensorEntry, dimension: int | None, rank: Share) -> _Span:
    place = tensor_place(
        tensor.name, tensor.dtype, tensor.shape, tensor.begin, tensor.end - tensor.begin
    )
    if dimension is None or rank.count == 1:
        return _Span(tensor.file, Wanted(place))
    length = place.shape[dimension] if dimension < len(place.shape) else 0
    # Ranks exchange parts of one size; a part that is shorter would fail there, and later.
    if not length or length % rank.count:
        raise CheckpointError(
            f"Expected a dimension {dimension} of {tensor.name} that {rank.count} ranks divide, "
            f"found shape {tensor.shape}.",
            "Use a number of ranks that divides it.",
        )
    begin, end = rank.range_of(length)
    if dimension:
        return _Span(tensor.file, Wanted(place, Cut(dimension, begin, end)))
    row_bytes = place.byte_count // length
    rows = TensorPlace(
        place.name,
        place.dtype,
        (end - begin, *place.shape[1:]),
        place.offset + begin * row_bytes,
        (end - begin) * row_bytes,
    )
    return _Span(tensor.file, Wanted(rows))


def _numbers(span: _Span, bases: Sequence[int]) -> Iterable[int]:
    place = span.wanted.place
    if not place.byte_count:
        return ()
    base = bases[span.file]
    return range((base + place.offset) // CHUNK_BYTES, -(-(base + place.end) // CHUNK_BYTES))


def _moved(span: _Span, bases: Sequence[int], ordinals: Mapping[int, int]) -> Wanted:
    place = span.wanted.place
    if not place.byte_count:
        return replace(span.wanted, place=replace(place, offset=0))
    number, within = divmod(bases[span.file] + place.offset, CHUNK_BYTES)
    offset = ordinals[number] * CHUNK_BYTES + within
    return replace(span.wanted, place=replace(place, offset=offset))
