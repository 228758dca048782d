"""`load_model`: a checkpoint as a transformers model whose weights are views of what was read."""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import transformers
from transformers.modeling_utils import PreTrainedModel

from stoker.native import ChunkError, Load, Progress, ReadRequest, Region
from stoker.placement.errors import BadRequest, ChunkCorrupt, StartFailed
from stoker.runtime.checkpoint.load_file import READ_THREADS, told_about
from stoker.runtime.checkpoint.manifest import ChunkEntry, Manifest, engine_tensors
from stoker.runtime.checkpoint.resolve import read_small_file, resolve
from stoker.runtime.checkpoint.settings import CheckpointSettings
from stoker.runtime.checkpoint.source import Source, open_source
from stoker.runtime.engine.tokenizer import read_json
from stoker.runtime.engine.weights import (
    attach,
    build_skeleton,
    dtype_of,
    tensor_place,
    tensor_views,
)

REMOTE_THREADS = 8
DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_model(
    uri: str | os.PathLike[str],
    device: str | int | torch.device = "cpu",
    dtype: str = "auto",
) -> PreTrainedModel:
    """Load the Hugging Face model at `uri`: a folder, `file:///path` or `s3://bucket/prefix`.

    A causal language model comes with its head, anything else that transformers knows as the
    bare model. It is in evaluation mode and wants no gradients. On the CPU with dtype `auto` its
    weights are views of the memory that was read into, one block for each file. S3 is found as
    by `stoker model`. Chunk digests of a packed checkpoint are verified.

    Raises BadSpec or BadRequest for an argument, CheckpointError for a checkpoint that is
    missing, forbidden, changing, corrupt or malformed, SourceUnavailable, and StartFailed for a
    model that transformers cannot build.
    """
    if dtype not in DTYPES:
        raise BadRequest(
            f"Expected a dtype among {', '.join(DTYPES)}, found {dtype!r:.40}.",
            "Use auto for the checkpoint's own.",
        )
    source = open_source(_uri_of(uri), CheckpointSettings.from_environment(os.environ))
    manifest = resolve(source)
    with tempfile.TemporaryDirectory(prefix="stoker-model-") as folder:
        files_dir = Path(folder)
        for entry in manifest.files:
            path = files_dir / entry.name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(read_small_file(source, entry))
        skeleton = build_skeleton(files_dir, bare=not _has_causal_head(files_dir))
        model = attach(skeleton, _tensors(source, manifest), dtype_of(dtype))
        if (files_dir / "generation_config.json").is_file() and model.can_generate():
            model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    absent = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if absent:
        raise StartFailed(
            f"Expected the weight {absent[0]} at {source.uri}, found none.",
            "Save the whole model again.",
        )
    moved: PreTrainedModel = model.to(device)
    return moved


def _uri_of(uri: str | os.PathLike[str]) -> str:
    text = os.fspath(uri)
    return text if "://" in text else Path(text).expanduser().absolute().as_uri()


def _has_causal_head(files_dir: Path) -> bool:
    architectures = read_json(files_dir / "config.json").get("architectures") or [""]
    return str(architectures[0]).endswith(("ForCausalLM", "LMHeadModel"))


def _tensors(source: Source, manifest: Manifest) -> dict[str, torch.Tensor]:
    memory = torch.frombuffer(_read(source, manifest), dtype=torch.uint8)
    bases = manifest.file_bases
    places = [
        tensor_place(t.name, t.dtype, t.shape, bases[t.file] + t.begin, t.end - t.begin)
        for t in engine_tensors(manifest)
    ]
    return tensor_views(memory, places)


def _read(source: Source, manifest: Manifest) -> Region:
    """The virtual space of the manifest, verified where it has digests."""
    region = Region(manifest.byte_count)
    load = Load.into_region(
        region,
        [chunk.bytes for chunk in manifest.chunks],
        [bytes.fromhex(chunk.digest) if chunk.digest else None for chunk in manifest.chunks],
        Progress(len(manifest.chunks), manifest.byte_count),
        borrow=True,
    )
    try:
        if source.local_dir is not None:
            _read_folder(source, source.local_dir, manifest, load)
        else:
            _fetch(source, manifest, load)
    except ChunkError as error:
        chunk = manifest.chunks[error.ordinal]
        name = manifest.weights[chunk.file].name
        raise ChunkCorrupt(
            f"Expected digest {error.expected} of {chunk.bytes} bytes at offset "
            f"{chunk.file_offset} of {name} at {source.uri}, found {error.found}.",
            "Push or pack the checkpoint again; if it recurs, check the storage behind it.",
            file=name,
            offset=chunk.file_offset,
            expected=error.expected,
            found=error.found,
        ) from error
    return region


def _read_folder(source: Source, folder: Path, manifest: Manifest, load: Load) -> None:
    names = [str(folder / weight.name) for weight in manifest.weights]
    with told_about(str(folder)):
        load.read(
            [ReadRequest(names[c.file], c.file_offset, c.ordinal) for c in manifest.chunks],
            READ_THREADS,
        )
    # Reading a little once more with the version tells if a file changed meanwhile.
    for weight in manifest.weights:
        source.read(weight.name, 0, memoryview(bytearray(8)), weight.version)


def _fetch(source: Source, manifest: Manifest, load: Load) -> None:
    def fetch(chunk: ChunkEntry) -> None:
        weight = manifest.weights[chunk.file]
        source.read(weight.name, chunk.file_offset, load.fill(chunk.ordinal), weight.version)
        load.commit(chunk.ordinal)

    with ThreadPoolExecutor(REMOTE_THREADS, "stoker-load") as threads:
        for _ in threads.map(fetch, manifest.chunks):
            pass
