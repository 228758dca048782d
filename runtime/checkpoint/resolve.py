"""From a source to the manifest that pins it: its own when packed, else one synthesised."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import orjson

from stoker.native import HeaderError, header_bytes, parse_header
from stoker.placement.errors import (
    CheckpointChanged,
    CheckpointError,
    CheckpointMissing,
    ChunkCorrupt,
    HeaderInvalid,
    PickleRefused,
)
from stoker.runtime.checkpoint.manifest import (
    MANIFEST_BYTES_MAXIMUM,
    MANIFEST_NAME,
    SMALL_FILE_BYTES_MAXIMUM,
    SMALL_FILES_MAXIMUM,
    FileEntry,
    Manifest,
    TensorEntry,
    WeightFile,
    check_name,
    chunk_count,
    decode,
    validate,
)
from stoker.runtime.checkpoint.source import Source, SourceFile

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
ADAPTER_CONFIG_NAME = "adapter_config.json"
HEADER_FIRST_READ_BYTES = 256 * 1024
_SMALL_SUFFIXES = (".json", ".txt", ".jinja", ".model")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


def resolve(source: Source) -> Manifest:
    """The manifest of the checkpoint at `source`: a model, or an adapter in PEFT's format.

    Raises CheckpointMissing, CheckpointForbidden, SourceUnavailable, PickleRefused, HeaderInvalid
    and CheckpointError for a folder that holds no model.
    """
    files = {file.name: file for file in source.list()}
    if MANIFEST_NAME in files:
        return _packed(source, files)
    weights = [files[name] for name in weight_names(source, files)]
    tensors = [
        tensor
        for number, file in enumerate(weights)
        for tensor in read_tensors(source, number, file)
    ]
    manifest = Manifest(
        packed=False,
        files=tuple(FileEntry(f.name, f.bytes, None, f.version) for f in small_files(files)),
        weights=tuple(
            WeightFile(f.name, f.bytes, (None,) * chunk_count(f.bytes), f.version) for f in weights
        ),
        tensors=tuple(tensors),
    )
    validate(manifest)
    return manifest


def weight_names(source: Source, files: Mapping[str, SourceFile]) -> list[str]:
    """The safetensors files that hold the model, else the adapter; pickles are refused."""
    if WEIGHTS_NAME in files:
        return [WEIGHTS_NAME]
    if INDEX_NAME in files:
        return _shards(source, files)
    if ADAPTER_CONFIG_NAME in files and ADAPTER_WEIGHTS_NAME in files:
        return [ADAPTER_WEIGHTS_NAME]
    pickles = [name for name in files if name.endswith(_PICKLE_SUFFIXES)]
    if pickles:
        raise PickleRefused(
            f"Expected {WEIGHTS_NAME} at {source.uri}, found only pickled weights: "
            f"{_listed(pickles)}.",
            "Convert them with safetensors: load the model and save it with "
            "`save_pretrained(folder, safe_serialization=True)`.",
        )
    raise CheckpointError(
        f"Expected {WEIGHTS_NAME} or {INDEX_NAME} at {source.uri}, found: {_listed(files)}.",
        "Name the folder or prefix of a Hugging Face model with safetensors weights.",
    )


def is_adapter(manifest: Manifest) -> bool:
    """Whether the checkpoint changes a model instead of being one."""
    return [weight.name for weight in manifest.weights] == [ADAPTER_WEIGHTS_NAME]


def check_kind(manifest: Manifest, uri: str, *, adapter: bool) -> None:
    """CheckpointError for a model where an adapter is meant, and the other way round."""
    if is_adapter(manifest) == adapter:
        return
    if adapter:
        raise CheckpointError(
            f"Expected an adapter at {uri}, found a whole model.",
            "Load it by itself, or name the folder that holds adapter_config.json.",
        )
    raise CheckpointError(
        f"Expected a model at {uri}, found an adapter.",
        "Load the model that it was made for, and name this one as the adapter.",
    )


def small_files(files: Mapping[str, SourceFile]) -> list[SourceFile]:
    """Configuration and tokenizer files; code is never among them."""
    chosen = [file for file in files.values() if _is_small_file(file.name)]
    oversized = next((f for f in chosen if f.bytes > SMALL_FILE_BYTES_MAXIMUM), None)
    if oversized is not None or len(chosen) > SMALL_FILES_MAXIMUM:
        found = f"{oversized.name} of {oversized.bytes}" if oversized else f"{len(chosen)} files"
        raise CheckpointError(
            f"Expected at most {SMALL_FILES_MAXIMUM} configuration and tokenizer files of at most "
            f"{SMALL_FILE_BYTES_MAXIMUM} bytes, found {found}.",
            "Keep only the model's own files in its folder.",
        )
    return chosen


def read_small_file(source: Source, entry: FileEntry) -> bytes:
    """The pinned file, verified where its SHA-256 is known."""
    payload = source.read_small(entry.name, entry.bytes, entry.version)
    found = hashlib.sha256(payload).hexdigest()
    if entry.sha256 is not None and found != entry.sha256:
        raise ChunkCorrupt(
            f"Expected SHA-256 {entry.sha256} of {entry.name} at {source.uri}, found {found}.",
            "Push or pack the checkpoint again.",
            file=entry.name,
            offset=0,
            expected=entry.sha256,
            found=found,
        )
    return payload


@contextmanager
def small_files_folder(source: Source, manifest: Manifest) -> Iterator[Path]:
    """The pinned small files in a folder of their own, for libraries that want to be shown one."""
    with tempfile.TemporaryDirectory(prefix="stoker-model-") as folder:
        for entry in manifest.files:
            path = Path(folder) / entry.name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(read_small_file(source, entry))
        yield Path(folder)


def read_tensors(source: Source, number: int, file: SourceFile) -> list[TensorEntry]:
    """The tensors of weight file `number`, in file order, from its header alone."""
    try:
        head = _read_header(source, file)
        parsed = parse_header(head, file.bytes)
    except HeaderError as error:
        raise HeaderInvalid(
            f"Expected a valid safetensors header in {source.uri}/{file.name}, found: {error}.",
            "Save or upload the file again.",
        ) from error
    return [
        TensorEntry(
            name, dtype, tuple(shape), number, len(head) + begin, len(head) + end, layer(name)
        )
        for name, dtype, shape, begin, end in parsed
    ]


def layer(name: str) -> int | None:
    """The number of the layer that a tensor belongs to, by its name."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def _read_header(source: Source, file: SourceFile) -> bytearray:
    """The 8 bytes of length and the header behind them; HeaderError for an absurd length."""
    head = bytearray(min(HEADER_FIRST_READ_BYTES, file.bytes))
    source.read(file.name, 0, memoryview(head), file.version)
    length = header_bytes(head[:8], file.bytes)
    have = min(len(head), length)
    head = head[:have] + bytearray(length - have)
    if have < length:
        source.read(file.name, have, memoryview(head)[have:], file.version)
    return head


def _packed(source: Source, files: Mapping[str, SourceFile]) -> Manifest:
    manifest = decode(source.read_small(MANIFEST_NAME, MANIFEST_BYTES_MAXIMUM))
    sizes = [(entry.name, entry.bytes) for entry in manifest.files]
    sizes += [(weight.name, weight.bytes) for weight in manifest.weights]
    for name, byte_count in sizes:
        found = files.get(name)
        if found is None:
            raise CheckpointMissing(
                f"Expected {name} at {source.uri}, as {MANIFEST_NAME} says, found none.",
                "Push the checkpoint again.",
            )
        if found.bytes != byte_count:
            raise CheckpointChanged(
                f"Expected {byte_count} bytes in {name} at {source.uri}, found {found.bytes}.",
                "Push the checkpoint again.",
            )
    if not manifest.packed:
        raise CheckpointError(
            f"Expected a packed checkpoint behind {MANIFEST_NAME} at {source.uri}.",
            "Pack the model again with `stoker model pack`.",
        )
    return manifest


def _shards(source: Source, files: Mapping[str, SourceFile]) -> list[str]:
    try:
        index = orjson.loads(source.read_small(INDEX_NAME, SMALL_FILE_BYTES_MAXIMUM))
        names = sorted(set(index["weight_map"].values()))
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"Expected a weight_map in {INDEX_NAME} at {source.uri}, found: {error!r:.120}.",
            "Save the model again with `save_pretrained`.",
        ) from error
    for name in names:
        check_name(name)
        if name not in files:
            raise CheckpointMissing(
                f"Expected {name} at {source.uri}, as {INDEX_NAME} says, found none.",
                "Upload every shard of the model.",
            )
    return names


def _is_small_file(name: str) -> bool:
    path = PurePosixPath(name)
    if path.suffix == ".py" or path.suffix in _PICKLE_SUFFIXES or path.suffix == ".safetensors":
        return False
    return name != MANIFEST_NAME and (
        path.suffix in _SMALL_SUFFIXES or path.name.startswith("tokenizer")
    )


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
