"""Weights that somebody else holds, as tensors: views of a mapping, never copies.

Making the views needs none of the bytes to have arrived, only computing with them does.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import orjson
import torch

from stoker.placement.errors import StartFailed, StokerError
from stoker.runtime.checkpoint.tensors import TensorPlace, is_cast, tensor_place

STALL_SECONDS = 60.0
"""A load that makes no progress for this long has failed."""

_CASTS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class LoadProgress(Protocol):
    """How far a checkpoint's load is, as the native Progress publishes it.

    `error` is the JSON of an error's wire form once `state` is failed.
    """

    @property
    def state(self) -> str: ...
    @property
    def error(self) -> str: ...
    @property
    def watermark_bytes(self) -> int: ...
    @property
    def total_bytes(self) -> int: ...

    def wait(self, watermark_bytes: int, timeout_seconds: float) -> int: ...

    def wait_for_range(self, begin: int, end: int, timeout_seconds: float) -> bool: ...


def read_layout(path: Path) -> tuple[TensorPlace, ...]:
    """The tensors of a checkpoint; CheckpointError when it names a dtype that torch lacks."""
    tensors = orjson.loads(path.read_bytes())["tensors"]
    return tuple(tensor_place(*fields) for fields in tensors)


def is_read_when_attached(places: Iterable[TensorPlace], dtype: torch.dtype | None) -> bool:
    """Whether making and attaching the tensors reads weights, which must then have arrived."""
    misaligned = any(place.offset % place.dtype.itemsize for place in places)
    return misaligned or is_cast(places, dtype)


def wait_for_bytes(progress: LoadProgress, byte_count: int) -> None:
    """Until the first `byte_count` bytes have arrived; raises the error that ended the load.

    Blocks without the GIL. A load that stalls is a StartFailed.
    """
    seen = -1
    while True:
        try:
            progress.wait(byte_count, STALL_SECONDS)
        except TimeoutError as error:
            if progress.watermark_bytes <= seen:
                raise StartFailed(
                    f"Expected the load of the checkpoint to go on, found it at "
                    f"{progress.watermark_bytes} of {progress.total_bytes} bytes for "
                    f"{STALL_SECONDS:.0f} s.",
                    "Look at the node agent's log, and call the function again.",
                ) from error
            seen = progress.watermark_bytes
            continue
        if progress.state != "failed" and progress.watermark_bytes >= byte_count:
            return
        raise load_error(progress)


def load_error(progress: LoadProgress) -> StokerError:
    """What ended a load before all had arrived."""
    if progress.state == "failed":
        return StokerError.from_wire(orjson.loads(progress.error))
    return StartFailed(
        "Expected a complete checkpoint, found that its load was cancelled.",
        "Call the function again.",
    )


def dtype_of(setting: str) -> torch.dtype | None:
    """The dtype that a function asks for, None for `auto`: the checkpoint's own."""
    return _CASTS.get(setting)
