"""`load_model`: a checkpoint as a transformers model whose weights are views of what was read."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import transformers
from transformers.modeling_utils import PreTrainedModel

from stoker.native import Region, digest, read_file
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
    tensors: dict[str, torch.Tensor] = {}
    for number, region in enumerate(_regions(source, manifest)):
        memory = torch.frombuffer(region, dtype=torch.uint8)
        places = [
            tensor_place(t.name, t.dtype, t.shape, t.begin, t.end - t.begin)
            for t in engine_tensors(manifest)
            if t.file == number
        ]
        tensors |= tensor_views(memory, places)
    return tensors


def _regions(source: Source, manifest: Manifest) -> Iterator[Region]:
    """The bytes of each weight file, verified where the manifest has digests."""
    with ThreadPoolExecutor(REMOTE_THREADS, "stoker-load") as threads:
        for number, weight in enumerate(manifest.weights):
            region = Region(weight.bytes)
            memory = memoryview(region)
            chunks = [chunk for chunk in manifest.chunks if chunk.file == number]
            if source.local_dir is not None:
                path = str(source.local_dir / weight.name)
                with told_about(path):
                    read_file(path, region, 0, weight.bytes, READ_THREADS)
                # Reading a little once more with the version tells if it changed meanwhile.
                source.read(weight.name, 0, memory[:8], weight.version)

            def arrive(chunk: ChunkEntry, memory: memoryview = memory) -> None:
                part = memory[chunk.file_offset : chunk.file_offset + chunk.bytes]
                weight = manifest.weights[chunk.file]
                if source.local_dir is None:
                    source.read(weight.name, chunk.file_offset, part, weight.version)
                _verify(source.uri, weight.name, chunk, part)

            for _ in threads.map(arrive, chunks):
                pass
            yield region


def _verify(uri: str, name: str, chunk: ChunkEntry, part: memoryview) -> None:
    if chunk.digest is None:
        return
    found = digest(part).hex()
    if found != chunk.digest:
        raise ChunkCorrupt(
            f"Expected digest {chunk.digest} of {chunk.bytes} bytes at offset "
            f"{chunk.file_offset} of {name} at {uri}, found {found}.",
            "Push or pack the checkpoint again; if it recurs, check the storage behind it.",
            file=name,
            offset=chunk.file_offset,
            expected=chunk.digest,
            found=found,
        )
