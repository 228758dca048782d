"""What a checkpoint consists of: its files, the digests of their chunks, its tensors.

A packed checkpoint carries its manifest as `stoker.manifest.json`; for a plain Hugging Face
folder one is synthesised, whose chunk digests are null and whose files are pinned by `version`
(an ETag, or a local file's times). Either way `Manifest.digest`, the SHA-256 of the canonical
bytes, names the checkpoint everywhere in Stoker.

    virtual space   |chunk 0|chunk 1|chunk 2 .|chunk 3|chunk 4 .|
    weight files    |<----- file 0 ----->|     |<- file 1 ->|

Weight file i starts at a chunk boundary of the virtual space, its safetensors header included.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Any

import orjson

from stoker.placement.errors import CheckpointError

MANIFEST_NAME = "stoker.manifest.json"
MANIFEST_BYTES_MAXIMUM = 16 * 1024 * 1024
FORMAT_VERSION = 1
CHUNK_BYTES = 16 * 1024 * 1024
DATA_ALIGNMENT_BYTES = 4096  # of the data section of a file that we write
TENSOR_ALIGNMENT_BYTES = 64
FILLER_PREFIX = "__stoker_filler_"
SMALL_FILE_BYTES_MAXIMUM = 64 * 1024 * 1024
SMALL_FILES_MAXIMUM = 256
WEIGHT_FILES_MAXIMUM = 4096
NAME_LENGTH_MAXIMUM = 255
DIMENSIONS_MAXIMUM = 64

DTYPE_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK_DIGEST = re.compile(r"[0-9a-f]{32}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")
_REMEDY = "Pack the checkpoint again with `stoker model pack`."


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A small file. `sha256` is known when packed; `version` pins an unpacked source's file."""

    name: str
    bytes: int
    sha256: str | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A safetensors file and the hex digest of each of its 16 MiB chunks (None: not yet known)."""

    name: str
    bytes: int
    chunks: tuple[str | None, ...]
    version: str | None = None


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor; `begin` and `end` are byte offsets in weight file number `file`.

    They count from the start of the file, header included. `tensor_parallel_dimension` is the
    dimension that a tensor-parallel split would cut, None for a tensor that is replicated.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: int
    begin: int
    end: int
    layer: int | None = None
    tensor_parallel_dimension: int | None = None


@dataclass(frozen=True, slots=True)
class ChunkEntry:
    """One chunk of the virtual space: `bytes` bytes of weight file `file` at `file_offset`."""

    ordinal: int
    file: int
    file_offset: int
    bytes: int
    digest: str | None


@dataclass(frozen=True)
class Manifest:
    """`tensors` are in the order of first use when packed, else in file order."""

    packed: bool
    files: tuple[FileEntry, ...]
    weights: tuple[WeightFile, ...]
    tensors: tuple[TensorEntry, ...]
    engine: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """64 hex digits."""
        return hashlib.sha256(encode(self)).hexdigest()

    @cached_property
    def chunks(self) -> tuple[ChunkEntry, ...]:
        """Every chunk in the order of the virtual space; a chunk's ordinal is its index."""
        return chunks_of(self.weights)

    @property
    def weight_bytes(self) -> int:
        return sum(weight.bytes for weight in self.weights)

    @property
    def byte_count(self) -> int:
        """Length of the virtual space: the last weight file ends it."""
        last = self.weights[-1]
        return self.file_bases[-1] + last.bytes

    @cached_property
    def file_bases(self) -> tuple[int, ...]:
        """Where each weight file starts in the virtual space."""
        counts = [len(weight.chunks) for weight in self.weights]
        return tuple(CHUNK_BYTES * n for n in accumulate([0, *counts[:-1]]))


def chunks_of(weights: Sequence[WeightFile]) -> tuple[ChunkEntry, ...]:
    pairs = ((file, k) for file, weight in enumerate(weights) for k in range(len(weight.chunks)))
    return tuple(
        ChunkEntry(
            ordinal,
            file,
            k * CHUNK_BYTES,
            min(CHUNK_BYTES, weights[file].bytes - k * CHUNK_BYTES),
            weights[file].chunks[k],
        )
        for ordinal, (file, k) in enumerate(pairs)
    )


def chunk_count(byte_count: int) -> int:
    return -(-byte_count // CHUNK_BYTES)


def encode(manifest: Manifest) -> bytes:
    """The canonical bytes: JSON, keys sorted, no spaces."""
    return orjson.dumps({"format": FORMAT_VERSION, **asdict(manifest)}, option=orjson.OPT_SORT_KEYS)


def decode(payload: bytes) -> Manifest:
    """The validated manifest in `payload`; CheckpointError when it is not one."""
    if len(payload) > MANIFEST_BYTES_MAXIMUM:
        raise invalid(f"at most {MANIFEST_BYTES_MAXIMUM} bytes", f"{len(payload)} bytes")
    try:
        fields = orjson.loads(payload)
        if fields["format"] != FORMAT_VERSION:
            raise invalid(f"format {FORMAT_VERSION}", f"format {fields['format']!r:.40}")
        manifest = Manifest(
            packed=fields["packed"],
            files=tuple(FileEntry(**entry) for entry in fields["files"]),
            weights=tuple(
                WeightFile(**{**entry, "chunks": tuple(entry["chunks"])})
                for entry in fields["weights"]
            ),
            tensors=tuple(
                TensorEntry(**{**entry, "shape": tuple(entry["shape"])})
                for entry in fields["tensors"]
            ),
            engine=fields["engine"],
        )
        validate(manifest)
    except (KeyError, TypeError, ValueError) as error:
        raise invalid("the manifest's fields", f"{error!r:.200}") from error
    return manifest


def validate(manifest: Manifest) -> None:
    """Raise CheckpointError unless every name, size, digest and offset holds together."""
    if manifest.packed not in (True, False) or not isinstance(manifest.engine, dict):
        raise invalid("a boolean `packed` and an object `engine`", f"{manifest.packed!r:.40}")
    names = [entry.name for entry in manifest.files] + [w.name for w in manifest.weights]
    for name in names:
        check_name(name)
    if len(set(names)) != len(names):
        raise invalid("every file once", "a file name twice")
    if len(manifest.files) > SMALL_FILES_MAXIMUM:
        raise invalid(f"at most {SMALL_FILES_MAXIMUM} small files", str(len(manifest.files)))
    if not 1 <= len(manifest.weights) <= WEIGHT_FILES_MAXIMUM:
        raise invalid(f"1 to {WEIGHT_FILES_MAXIMUM} weight files", str(len(manifest.weights)))
    for entry in manifest.files:
        _validate_file(entry, manifest.packed)
    for weight in manifest.weights:
        _validate_weight(weight, manifest.packed)
    _validate_tensors(manifest)


def check_name(name: object) -> None:
    """Refuse a file name that could leave its folder."""
    sound = (
        isinstance(name, str)
        and 0 < len(name) <= NAME_LENGTH_MAXIMUM
        and not _CONTROL.search(name)
        and all(part not in ("", ".", "..") for part in name.split("/"))
    )
    if not sound:
        raise invalid("a relative file name without `..`", f"{name!r:.80}")


def invalid(expected: str, found: str) -> CheckpointError:
    return CheckpointError(f"Expected {expected} in {MANIFEST_NAME}, found {found}.", _REMEDY)


def _is_count(value: object, maximum: int = 1 << 50) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= maximum


def _validate_file(entry: FileEntry, packed: bool) -> None:
    if not _is_count(entry.bytes, SMALL_FILE_BYTES_MAXIMUM):
        raise invalid(
            f"{entry.name} of at most {SMALL_FILE_BYTES_MAXIMUM} bytes", f"{entry.bytes!r:.40}"
        )
    if entry.name == MANIFEST_NAME or entry.name.endswith(".py"):
        raise invalid("data files only", entry.name)
    _validate_pin(entry.name, entry.sha256, entry.version, packed, _SHA256)


def _validate_weight(weight: WeightFile, packed: bool) -> None:
    if not weight.name.endswith(".safetensors"):
        raise invalid("weight files named *.safetensors", weight.name)
    if not _is_count(weight.bytes) or weight.bytes < 8:
        raise invalid(f"{weight.name} of at least 8 bytes", f"{weight.bytes!r:.40}")
    if len(weight.chunks) != chunk_count(weight.bytes):
        raise invalid(
            f"{chunk_count(weight.bytes)} chunk digests of {weight.name}", str(len(weight.chunks))
        )
    for digest in weight.chunks:
        _validate_pin(weight.name, digest, weight.version, packed, _CHUNK_DIGEST)


def _validate_pin(
    name: str, digest: object, version: object, packed: bool, shape: re.Pattern[str]
) -> None:
    if packed and not (isinstance(digest, str) and shape.fullmatch(digest)):
        raise invalid(f"a digest of {name} in hex", f"{digest!r:.80}")
    if not packed and not (isinstance(version, str) and digest is None):
        raise invalid(f"a version and no digest of {name}", f"{version!r:.80}, {digest!r:.80}")


def _validate_tensors(manifest: Manifest) -> None:
    if len({tensor.name for tensor in manifest.tensors}) != len(manifest.tensors):
        raise invalid("every tensor once", "a tensor name twice")
    ends = [0] * len(manifest.weights)
    for tensor in sorted(manifest.tensors, key=lambda t: (t.file, t.begin, t.end)):
        _validate_tensor(tensor, manifest)
        if tensor.begin < ends[tensor.file]:
            raise invalid(f"{tensor.name} after the tensor before it", f"begin {tensor.begin}")
        ends[tensor.file] = tensor.end


def _validate_tensor(tensor: TensorEntry, manifest: Manifest) -> None:
    if not isinstance(tensor.name, str) or not 0 < len(tensor.name) <= 4 * NAME_LENGTH_MAXIMUM:
        raise invalid("tensor names of bounded length", f"{tensor.name!r:.80}")
    if tensor.dtype not in DTYPE_BITS:
        raise invalid(f"a known dtype of {tensor.name}", f"{tensor.dtype!r:.40}")
    if len(tensor.shape) > DIMENSIONS_MAXIMUM or not all(map(_is_count, tensor.shape)):
        raise invalid(f"a shape of {tensor.name}", f"{tensor.shape!r:.80}")
    if not _is_count(tensor.file) or tensor.file >= len(manifest.weights):
        raise invalid(f"the weight file of {tensor.name}", f"{tensor.file!r:.40}")
    file_bytes = manifest.weights[tensor.file].bytes
    in_file = (
        _is_count(tensor.begin)
        and _is_count(tensor.end)
        and tensor.begin <= tensor.end <= file_bytes
    )
    bits = prod(tensor.shape) * DTYPE_BITS[tensor.dtype]
    if not in_file or 8 * (tensor.end - tensor.begin) != bits:
        raise invalid(
            f"{tensor.name} as {bits // 8} bytes within {file_bytes}",
            f"bytes {tensor.begin!r:.40} to {tensor.end!r:.40}",
        )
    for value in (tensor.layer, tensor.tensor_parallel_dimension):
        if value is not None and not _is_count(value):
            raise invalid(f"numbers of {tensor.name}", f"{value!r:.40}")


def engine_tensors(manifest: Manifest) -> Iterator[TensorEntry]:
    """The tensors that a model has: every one but the fillers that keep others aligned."""
    return (t for t in manifest.tensors if not t.name.startswith(FILLER_PREFIX))
