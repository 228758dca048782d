"""A model around weights that somebody else holds: views of a mapping, never copies.

The skeleton is built on torch's meta device and takes milliseconds; the tensors are views of
the mapped chunks, so attaching costs the same whatever the model's size. None of it needs the
bytes to have arrived, only the forward pass does.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson
import torch
import transformers
from transformers.modeling_utils import PreTrainedModel

from stoker.placement.errors import StartFailed, StokerError
from stoker.runtime.checkpoint.tensors import TensorPlace, tensor_place
from stoker.runtime.engine.tokenizer import read_json

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


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A model without weights. `bare` is the encoder or decoder alone, without its head."""

    model: PreTrainedModel
    bare: bool


def build_skeleton(files_dir: Path, *, bare: bool) -> Skeleton:
    """The model of the checkpoint's config.json on the meta device; StartFailed if unknown.

    Code in the checkpoint (`auto_map`) is never run.
    """
    model_type = read_json(files_dir / "config.json").get("model_type")
    if model_type not in transformers.CONFIG_MAPPING:
        raise StartFailed(
            f"Expected a config.json of a model that transformers knows, found {model_type!r}.",
            "Code in a checkpoint is never run: use a model that transformers has built in.",
        )
    try:
        config = transformers.CONFIG_MAPPING[model_type].from_pretrained(str(files_dir))
    except (OSError, ValueError, TypeError) as error:
        raise StartFailed(
            f"Expected a readable config.json in the checkpoint, found: {error}.",
            "Correct the file in the checkpoint.",
        ) from error
    with torch.device("meta"):
        if bare:
            if type(config) not in transformers.MODEL_MAPPING:
                raise StartFailed(
                    f"Expected a model with hidden states to embed with, found {model_type!r}.",
                    "Deploy an encoder.",
                )
            return Skeleton(transformers.MODEL_MAPPING[type(config)](config), bare=True)
        name = (config.architectures or [""])[0]
        cls = getattr(transformers, name, None)
        if not name.endswith(("ForCausalLM", "LMHeadModel")) or cls is None:
            raise StartFailed(
                f"Expected a causal language model in config.json's architectures, found {name!r}.",
                "Deploy encoders with stoker/task: embed.",
            )
        config._attn_implementation = "sdpa"  # noqa: SLF001 (the only way to say it)
        return Skeleton(cls(config), bare=False)


def attach(
    skeleton: Skeleton, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None
) -> PreTrainedModel:
    """The skeleton's model with `tensors` for its weights, ready for inference.

    With a `dtype`, floating-point tensors of another one are cast, which reads and copies them:
    all bytes must have arrived. StartFailed names a weight that is not in the checkpoint.
    """
    model = skeleton.model
    named = dict(tensors)
    if skeleton.bare and model.base_model_prefix:
        prefix = model.base_model_prefix + "."
        named = {name.removeprefix(prefix): tensor for name, tensor in named.items()}
    if dtype is not None:
        named = {n: t.to(dtype) if t.is_floating_point() else t for n, t in named.items()}
    model.load_state_dict(named, strict=False, assign=True)
    model.tie_weights()
    _rebuild_buffers(model)
    absent = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    absent = [name for name in absent if not (skeleton.bare and name.startswith("pooler."))]
    if absent:
        raise StartFailed(
            f"Expected the weight {absent[0]} in the checkpoint, found none "
            f"({len(absent)} of {len(list(model.named_parameters()))} weights are missing).",
            "Check that config.json and the weight files belong together.",
        )
    model.requires_grad_(False)
    return model.eval()


def _rebuild_buffers(model: PreTrainedModel) -> None:
    """Buffers that checkpoints do not hold (rotary frequencies, position ids) from the config."""
    for module in model.modules():
        names = [n for n, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        for name in names:
            module.register_buffer(
                name,
                torch.empty_like(getattr(module, name), device="cpu"),
                persistent=name not in module._non_persistent_buffers_set,  # noqa: SLF001
            )
        if names:
            with torch.no_grad():
                model._init_weights(module)  # noqa: SLF001 (transformers' hook for this)


def dtype_of(setting: str) -> torch.dtype | None:
    """The dtype that a function asks for, None for `auto`: the checkpoint's own."""
    return _CASTS.get(setting)


@functools.cache
def common_architectures() -> tuple[type[Any], ...]:
    """Model classes worth having imported before a fork; importing one takes up to 2 s."""
    names = (
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "Gemma3ForCausalLM",
        "BertModel",
    )
    return tuple(getattr(transformers, name) for name in names)
