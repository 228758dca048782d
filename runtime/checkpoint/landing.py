"""The bytes of a checkpoint as one tensor, on the device where its tensors are to be."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stoker.placement.errors import BadRequest
from stoker.runtime.checkpoint.bring import Origin, Report, bring, bring_to_device
from stoker.runtime.checkpoint.manifest import ChunkEntry


def land(
    origin: Origin,
    chunks: Sequence[ChunkEntry],
    device: torch.device,
    *,
    borrow: bool = True,
    report: Report | None = None,
) -> torch.Tensor:
    """`bring`, as a uint8 tensor: on a CUDA device if that is asked for, else on the CPU."""
    if device.type == "cuda":
        index = device.index if device.index is not None else torch.cuda.current_device()
        memory = bring_to_device(origin, chunks, index, report=report)
        found: torch.Tensor = torch.utils.dlpack.from_dlpack(memory)
        return found
    return torch.frombuffer(bring(origin, chunks, borrow=borrow, report=report), dtype=torch.uint8)


def check_device(device: str | int | torch.device) -> torch.device:
    """The device; BadRequest for one that this PyTorch does not know or reach."""
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise BadRequest(
            f"Expected a device that PyTorch has, found {device!r:.40}.", "Name cpu or cuda:0."
        ) from error
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise BadRequest(
            f"Expected a CUDA device that PyTorch reaches, found {target} of "
            f"{torch.cuda.device_count()} devices.",
            "Install PyTorch for CUDA on a machine with a GPU, or load to the CPU.",
        )
    return target
