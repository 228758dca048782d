"""Checkpoints small enough for tests, some of several chunks."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy
from safetensors.numpy import save_file

from stoker.native import digest
from stoker.runtime.checkpoint.manifest import (
    CHUNK_BYTES,
    MANIFEST_NAME,
    Manifest,
    decode,
    encode,
)
from stoker.runtime.checkpoint.resolve import resolve
from stoker.runtime.checkpoint.source_file import FileSource


def tensors(mebibytes: int, seed: int = 0, name: str = "weight") -> dict[str, numpy.ndarray]:
    """Random bytes under four names, `mebibytes` MiB in all."""
    random = numpy.random.default_rng(seed)
    shape = (mebibytes * 16, 1 << 16)
    return {
        f"layers.{i}.{name}": random.integers(0, 255, shape, dtype=numpy.uint8) for i in range(1)
    } | {"norm.weight": random.random(3, dtype=numpy.float32)}


def plain(folder: Path, mebibytes: int = 1, seed: int = 0) -> Path:
    """A Hugging Face folder of one weight file."""
    folder.mkdir(parents=True)
    _small_files(folder)
    save_file(tensors(mebibytes, seed), folder / "model.safetensors")
    return folder


def sharded(folder: Path, mebibytes: int = 17) -> Path:
    """A Hugging Face folder of two weight files, the first longer than a chunk."""
    folder.mkdir(parents=True)
    _small_files(folder)
    weight_map = {}
    for number, size in enumerate((mebibytes, 1), start=1):
        name = f"model-0000{number}-of-00002.safetensors"
        part = {f"part{number}.{k}": v for k, v in tensors(size, number).items()}
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def packed(folder: Path) -> Path:
    """The same folder with a manifest that pins every chunk and file, as packing writes it."""
    manifest = resolve(FileSource(folder))
    files = tuple(
        replace(f, version=None, sha256=hashlib.sha256((folder / f.name).read_bytes()).hexdigest())
        for f in manifest.files
    )
    weights = tuple(
        replace(
            w,
            version=None,
            chunks=tuple(
                digest(chunk_bytes_of(folder / w.name, k)).hex() for k in range(len(w.chunks))
            ),
        )
        for w in manifest.weights
    )
    pinned = replace(manifest, packed=True, files=files, weights=weights)
    (folder / MANIFEST_NAME).write_bytes(encode(pinned))
    return folder


def write_manifest(folder: Path) -> Manifest:
    """The manifest that `packed` writes there."""
    return decode((packed(folder) / MANIFEST_NAME).read_bytes())


def chunk_bytes_of(path: Path, ordinal: int) -> bytes:
    return path.read_bytes()[ordinal * CHUNK_BYTES : (ordinal + 1) * CHUNK_BYTES]


def _small_files(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "none"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "modeling_evil.py").write_text("raise SystemExit")
