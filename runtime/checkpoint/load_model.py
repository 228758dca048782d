"""`load_model`: a checkpoint as a transformers model whose weights are views of what was read."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import transformers
from transformers.modeling_utils import PreTrainedModel

from stoker.placement.errors import BadRequest, StartFailed
from stoker.runtime.checkpoint.adapter import attach_adapter, read_config
from stoker.runtime.checkpoint.bring import OnProgress, Report, bring, origin_of
from stoker.runtime.checkpoint.landing import check_device, land
from stoker.runtime.checkpoint.manifest import Manifest, engine_tensors
from stoker.runtime.checkpoint.own import Maker, Wanted
from stoker.runtime.checkpoint.resolve import check_kind, resolve, small_files_folder
from stoker.runtime.checkpoint.source import Source, open_model
from stoker.runtime.checkpoint.stopping import asynchronous
from stoker.runtime.checkpoint.tensors import is_cast, tensor_place, tensor_views
from stoker.runtime.engine.skeleton import attach, build_skeleton
from stoker.runtime.engine.tokenizer import read_json
from stoker.runtime.engine.weights import dtype_of

DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_model(
    uri: str | os.PathLike[str],
    device: str | int | torch.device = "cpu",
    dtype: str = "auto",
    *,
    adapter: str | os.PathLike[str] | None = None,
    on_progress: OnProgress | None = None,
) -> PreTrainedModel:
    """Load the Hugging Face model at `uri`: a folder, `file:///path` or `s3://bucket/prefix`.

    A causal language model comes with its head, anything else that transformers knows as the
    bare model. It is in evaluation mode and wants no gradients. On the CPU with dtype `auto` its
    weights are views of the memory that was read into; another dtype is cast to while the rest
    still comes. S3 is found as by `stoker model`. Chunk digests of a packed checkpoint are
    verified.

    `adapter` names a LoRA adapter in PEFT's format in the same ways. Its update is computed
    beside the base weights, which stay as they are. `on_progress(done_bytes, total_bytes)` counts
    both, as for `load_file`.

    Raises BadSpec or BadRequest for an argument, CheckpointError for a checkpoint that is
    missing, forbidden, changing, corrupt or malformed or for an adapter of another base,
    SourceUnavailable, and StartFailed for a model that transformers cannot build.
    """
    if dtype not in DTYPES:
        raise BadRequest(
            f"Expected a dtype among {', '.join(DTYPES)}, found {dtype!r:.40}.",
            "Use auto for the checkpoint's own.",
        )
    target = check_device(device)
    source, manifest = _resolved(uri, adapter=False)
    added = None if adapter is None else _resolved(adapter, adapter=True)
    total_bytes = manifest.weight_bytes + (added[1].weight_bytes if added else 0)
    report = Report(on_progress, total_bytes)
    with small_files_folder(source, manifest) as folder:
        skeleton = build_skeleton(folder, bare=not _has_causal_head(folder))
        tensors = _bring(source, manifest, target, dtype_of(dtype), report)
        model = attach(skeleton, tensors, dtype_of(dtype))
        if (folder / "generation_config.json").is_file() and model.can_generate():
            model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    absent = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if absent:
        raise StartFailed(
            f"Expected the weight {absent[0]} at {source.uri}, found none.",
            "Save the whole model again.",
        )
    if added is not None:
        with small_files_folder(*added) as folder:
            uri = added[0].uri
            config = read_config(folder, uri)
            attach_adapter(model, config, _bring(*added, target, None, report), uri)
    moved: PreTrainedModel = model.to(target)
    return moved


load_model_async = asynchronous(load_model)


def _resolved(uri: str | os.PathLike[str], *, adapter: bool) -> tuple[Source, Manifest]:
    source = open_model(uri)
    manifest = resolve(source)
    check_kind(manifest, source.uri, adapter=adapter)
    return source, manifest


def _has_causal_head(files_dir: Path) -> bool:
    architectures = read_json(files_dir / "config.json").get("architectures") or [""]
    return str(architectures[0]).endswith(("ForCausalLM", "LMHeadModel"))


def _bring(
    source: Source,
    manifest: Manifest,
    target: torch.device,
    dtype: torch.dtype | None,
    report: Report,
) -> dict[str, torch.Tensor]:
    bases = manifest.file_bases
    places = [
        tensor_place(t.name, t.dtype, t.shape, bases[t.file] + t.begin, t.end - t.begin)
        for t in engine_tensors(manifest)
    ]
    origin = origin_of(source, manifest)
    if not is_cast(places, dtype):
        return tensor_views(land(origin, manifest.chunks, target, report=report), places)
    maker = Maker([Wanted(place) for place in places], dtype, target)
    bring(origin, manifest.chunks, on_ready=maker, report=report)
    return maker.tensors
