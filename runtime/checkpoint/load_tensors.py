"""`load_tensors`: the tensors of a checkpoint, or those parts that one rank or stage needs."""

from __future__ import annotations

import os

import torch

from stoker.runtime.checkpoint.bring import OnProgress, Report, bring, origin_of
from stoker.runtime.checkpoint.landing import check_device, land
from stoker.runtime.checkpoint.manifest import engine_tensors
from stoker.runtime.checkpoint.own import Maker
from stoker.runtime.checkpoint.resolve import resolve, small_files_folder
from stoker.runtime.checkpoint.source import open_model
from stoker.runtime.checkpoint.split import dimensions, select, share, stage_tensors
from stoker.runtime.checkpoint.stopping import asynchronous
from stoker.runtime.checkpoint.tensors import check_cast, is_cast, tensor_view
from stoker.runtime.checkpoint.trace import trace


def load_tensors(
    uri: str | os.PathLike[str],
    device: str | int | torch.device = "cpu",
    *,
    tensor_parallel: tuple[int, int] = (0, 1),
    pipeline: tuple[int, int] = (0, 1),
    dtype: torch.dtype | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, torch.Tensor]:
    """The tensors by name of the checkpoint at `uri`, in one file, in shards or packed.

    `tensor_parallel` is (rank, number of ranks) and `pipeline` (stage, number of stages), counted
    from 0; how they split is told in the split module. Only the 16 MiB chunks that hold some of
    the asked bytes are read, and verified where the checkpoint is packed: rows are ranges of a
    file, columns are picked from all of a tensor's chunks. A tensor-parallel split needs a packed
    checkpoint or a model that transformers knows, pipeline stages the latter.

    Without a split by rank and without another `dtype`, tensors on the CPU are views of what was
    read. Else each is made as its bytes come, in memory of its own; see `load_file` for that, for
    `on_progress`, and for what is raised, to which come BadSpec for the URI, BadRequest for an
    impossible split, and CheckpointError for a tensor that the ranks do not divide.
    """
    check_cast(dtype)
    rank, stage = share("tensor_parallel", tensor_parallel), share("pipeline", pipeline)
    target = check_device(device)
    source = open_model(uri)
    manifest = resolve(source)
    traced = None
    if stage.count > 1 or (rank.count > 1 and not manifest.packed):
        with small_files_folder(source, manifest) as folder:
            traced = trace(folder)
    tensors = list(engine_tensors(manifest))
    if traced is not None and stage.count > 1:
        tensors = stage_tensors(manifest, traced, stage)
    cut_dimensions = dimensions(manifest, None if manifest.packed else traced)
    selection = select(manifest, tensors, cut_dimensions if rank.count > 1 else {}, rank)
    places = [wanted.place for wanted in selection.wanted]
    if not selection.chunks:
        return {p.name: torch.empty(p.shape, dtype=p.dtype, device=target) for p in places}
    origin = origin_of(source, manifest)
    report = Report(on_progress, sum(chunk.bytes for chunk in selection.chunks))
    if rank.count > 1 or is_cast(places, dtype):
        maker = Maker(selection.wanted, dtype, target)
        bring(origin, selection.chunks, on_ready=maker, report=report)
        return {place.name: maker.tensors[place.name] for place in places}
    memory = land(origin, selection.chunks, target, report=report)
    return {place.name: tensor_view(memory, place).to(target) for place in places}


load_tensors_async = asynchronous(load_tensors)
