"""Write a checkpoint in its loading-optimised form, which is still valid safetensors.

8 bytes | header, padded with spaces | tensor | (filler) | tensor | ...
                                     ^ a multiple of 4096
Tensors lie in the order of first use, each at a multiple of 64 bytes; the format forbids
holes, so gaps are U8 tensors of their own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import orjson

from stoker.native import digest
from stoker.placement.errors import CheckpointError, StorageFull
from stoker.runtime.checkpoint import manifest as manifests
from stoker.runtime.checkpoint.manifest import (
    CHUNK_BYTES,
    DATA_ALIGNMENT_BYTES,
    FILLER_PREFIX,
    MANIFEST_NAME,
    TENSOR_ALIGNMENT_BYTES,
    FileEntry,
    Manifest,
    TensorEntry,
    WeightFile,
    engine_tensors,
    validate,
)
from stoker.runtime.checkpoint.resolve import INDEX_NAME, WEIGHTS_NAME, resolve
from stoker.runtime.checkpoint.source_file import FileSource
from stoker.runtime.checkpoint.trace import Trace, trace
from stoker.runtime.durable import sync_folder, write_file

COPY_BYTES = 1 << 20

OnBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class _Placed:
    """A tensor of the source (None: a filler) and where its bytes go in the packed data."""

    source: TensorEntry | None
    target: TensorEntry


def pack(folder: Path, out: Path, on_bytes: OnBytes = lambda _: None) -> Manifest:
    """Pack the model in `folder` into `out`, which must not exist or be empty.

    `on_bytes` gets the size of each piece of weights written. Memory stays bounded by a chunk.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(
            f"Expected {out} to be absent or an empty folder, found something there.",
            "Choose another folder with --out, or remove this one.",
        )
    source = FileSource(folder.absolute())
    original = resolve(source)
    placed, header = _place(_order(source, original, trace(folder)))
    out = out.absolute()
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True, mode=0o755)
        weight = _write_weights(
            temporary / WEIGHTS_NAME, source, original, placed, header, on_bytes
        )
        manifest = Manifest(
            packed=True,
            files=tuple(_copy_small_files(source, original, temporary)),
            weights=(weight,),
            tensors=tuple(item.target for item in placed),
        )
        validate(manifest)
        write_file(temporary / MANIFEST_NAME, manifests.encode(manifest))
        temporary.rename(out)
        sync_folder(out.parent)
    except OSError as error:
        raise StorageFull(
            f"Expected to write the packed model to {out}, found: {error.strerror}.",
            "Free space there or choose another folder with --out.",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def _order(source: FileSource, original: Manifest, traced: Trace) -> list[TensorEntry]:
    """The tensors to keep, first used first; what the pass never touched goes last."""
    by_name = {tensor.name: tensor for tensor in engine_tensors(original)}
    order: dict[str, TensorEntry] = {}
    dropped: set[str] = set()
    for name in traced.order:
        # A tied tensor may be stored under another of its names only.
        found, tied = traced.stored_names(name, by_name)
        for stored in (*found, *tied):
            if stored in order or stored in dropped:
                continue
            twin = next((n for n in (*found, *tied) if n in order), None)
            if twin is not None and _same_bytes(source, original, order[twin], by_name[stored]):
                dropped.add(stored)
            else:
                order[stored] = by_name[stored]
    if not order:
        raise CheckpointError(
            f"Expected tensors of the model's own names in {source.uri}, found none of them.",
            "Serve the model unpacked: name its folder or prefix as it is.",
        )
    rest = [t for name, t in by_name.items() if name not in order and name not in dropped]
    return [
        replace(
            tensor,
            tensor_parallel_dimension=traced.tensor_parallel_dimension(
                tensor.name, len(tensor.shape)
            ),
        )
        for tensor in (*order.values(), *rest)
    ]


def _place(tensors: list[TensorEntry]) -> tuple[list[_Placed], bytes]:
    """Lay the tensors out and write the header; offsets of the result are those in the file."""
    placed: list[_Placed] = []
    position = 0
    for tensor in tensors:
        gap = -position % TENSOR_ALIGNMENT_BYTES
        if gap:
            name = f"{FILLER_PREFIX}{len(placed)}__"
            filler = TensorEntry(name, "U8", (gap,), 0, position, position + gap)
            placed.append(_Placed(None, filler))
            position += gap
        size = tensor.end - tensor.begin
        target = replace(tensor, file=0, begin=position, end=position + size)
        placed.append(_Placed(tensor, target))
        position += size
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for item in placed:
        t = item.target
        entries[t.name] = {"dtype": t.dtype, "shape": t.shape, "data_offsets": [t.begin, t.end]}
    text = orjson.dumps(entries)
    text += b" " * (-(8 + len(text)) % DATA_ALIGNMENT_BYTES)
    header = len(text).to_bytes(8, "little") + text
    return [_shifted(item, len(header)) for item in placed], header


def _shifted(item: _Placed, header_bytes: int) -> _Placed:
    t = item.target
    shifted = replace(t, begin=t.begin + header_bytes, end=t.end + header_bytes)
    return _Placed(item.source, shifted)


def _write_weights(
    path: Path,
    source: FileSource,
    original: Manifest,
    placed: list[_Placed],
    header: bytes,
    on_bytes: OnBytes,
) -> WeightFile:
    with open(path, "xb", buffering=0) as file:
        writer = _ChunkWriter(file)
        writer.write(memoryview(header))
        buffer = memoryview(bytearray(COPY_BYTES))
        for item in placed:
            size = item.target.end - item.target.begin
            if item.source is None:
                writer.write(memoryview(bytes(size)))
                continue
            weight = original.weights[item.source.file]
            for start in range(0, size, COPY_BYTES):
                piece = buffer[: min(COPY_BYTES, size - start)]
                source.read(weight.name, item.source.begin + start, piece, weight.version)
                writer.write(piece)
                on_bytes(len(piece))
        writer.finish()
        os.fsync(file.fileno())
    return WeightFile(path.name, writer.written, tuple(writer.digests))


class _ChunkWriter:
    """Writes whole chunks and keeps the digest of each."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._chunk = memoryview(bytearray(CHUNK_BYTES))
        self._filled = 0
        self.digests: list[str] = []
        self.written = 0

    def write(self, data: memoryview) -> None:
        while len(data):
            count = min(len(data), CHUNK_BYTES - self._filled)
            self._chunk[self._filled : self._filled + count] = data[:count]
            self._filled += count
            data = data[count:]
            if self._filled == CHUNK_BYTES:
                self._flush()

    def finish(self) -> None:
        if self._filled:
            self._flush()

    def _flush(self) -> None:
        chunk = self._chunk[: self._filled]
        self.digests.append(digest(chunk).hex())
        self.written += len(chunk)
        while len(chunk):
            chunk = chunk[self._file.write(chunk) :]
        self._filled = 0


def _same_bytes(
    source: FileSource, original: Manifest, one: TensorEntry, other: TensorEntry
) -> bool:
    size = one.end - one.begin
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    pieces = [bytearray(COPY_BYTES), bytearray(COPY_BYTES)]
    for start in range(0, size, COPY_BYTES):
        count = min(COPY_BYTES, size - start)
        for tensor, piece in zip((one, other), pieces, strict=True):
            weight = original.weights[tensor.file]
            view = memoryview(piece)[:count]
            source.read(weight.name, tensor.begin + start, view, weight.version)
        if pieces[0][:count] != pieces[1][:count]:
            return False
    return True


def _copy_small_files(source: FileSource, original: Manifest, folder: Path) -> list[FileEntry]:
    entries = []
    for entry in original.files:
        if entry.name == INDEX_NAME:
            continue  # it names shards that the packed form does not have
        payload = source.read_small(entry.name, entry.bytes, entry.version)
        path = folder / entry.name
        path.parent.mkdir(exist_ok=True)
        write_file(path, payload)
        entries.append(FileEntry(entry.name, len(payload), hashlib.sha256(payload).hexdigest()))
    return entries
