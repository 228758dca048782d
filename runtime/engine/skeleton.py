"""A model without weights, made ahead of need, and what it takes to give it some.

It is built on torch's meta device in milliseconds. All that does not need the weights is done
here, where a zygote has time for it: attaching them is an assignment each, whatever their size.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.initialization import no_init_weights
from transformers.modeling_utils import PreTrainedModel

from stoker.placement.errors import StartFailed
from stoker.runtime.engine.tokenizer import read_json


@dataclass(frozen=True, slots=True)
class _Slot:
    """One weight of the model: its names, where it is tied several, and who holds it."""

    names: tuple[str, ...]
    holders: tuple[tuple[dict[str, Any], str], ...]
    shape: torch.Size
    is_parameter: bool


class Skeleton:
    """`model` without weights. `bare` is the encoder or decoder alone, without its head."""

    def __init__(self, model: PreTrainedModel, *, bare: bool) -> None:
        self.model = model
        self.prefix = f"{model.base_model_prefix}." if bare and model.base_model_prefix else ""
        self.optional = "pooler." if bare else None
        model.tie_weights()
        _rebuild_buffers(model)
        model.requires_grad_(False)
        model.eval()
        self.slots = _slots(model)


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
    make = _encoder(config) if bare else _language_model(config)
    with torch.device("meta"), no_init_weights():
        model = make(config)
    return Skeleton(model, bare=bare)


def _encoder(config: Any) -> Any:
    if type(config) not in transformers.MODEL_MAPPING:
        raise StartFailed(
            f"Expected a model with hidden states to embed with, found {config.model_type!r}.",
            "Deploy an encoder.",
        )
    return transformers.MODEL_MAPPING[type(config)]


def _language_model(config: Any) -> Any:
    name = (config.architectures or [""])[0]
    cls = getattr(transformers, name, None)
    if not name.endswith(("ForCausalLM", "LMHeadModel")) or cls is None:
        raise StartFailed(
            f"Expected a causal language model in config.json's architectures, found {name!r}.",
            "Deploy encoders with stoker/task: embed.",
        )
    config._attn_implementation = "sdpa"  # noqa: SLF001 (the only way to say it)
    return cls


def attach(
    skeleton: Skeleton, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None
) -> PreTrainedModel:
    """The skeleton's model with `tensors` for its weights, ready for inference.

    With a `dtype`, floating-point tensors of another one are cast, which reads and copies them:
    all bytes must have arrived. StartFailed names a weight that is missing or of another shape.
    """
    absent = []
    for slot in skeleton.slots:
        tensor = _find(tensors, slot, skeleton.prefix)
        if tensor is None:
            if slot.is_parameter:
                absent.append(slot.names[0])
            continue
        if tensor.shape != slot.shape:
            raise StartFailed(
                f"Expected the weight {slot.names[0]} of shape {tuple(slot.shape)}, as config.json "
                f"says, found {tuple(tensor.shape)}.",
                "Check that config.json and the weight files belong together.",
            )
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        value = nn.Parameter(tensor, requires_grad=False) if slot.is_parameter else tensor
        for holder, name in slot.holders:
            holder[name] = value
    if skeleton.optional is not None:
        absent = [name for name in absent if not name.startswith(skeleton.optional)]
    if absent:
        raise StartFailed(
            f"Expected the weight {absent[0]} in the checkpoint, found none "
            f"({len(absent)} of {len(skeleton.slots)} weights are missing).",
            "Check that config.json and the weight files belong together.",
        )
    return skeleton.model


def _find(tensors: Mapping[str, torch.Tensor], slot: _Slot, prefix: str) -> torch.Tensor | None:
    """The slot's tensor; a checkpoint of a whole model names those of its base with a prefix."""
    for name in slot.names:
        found = tensors.get(prefix + name) if prefix else None
        found = tensors.get(name) if found is None else found
        if found is not None:
            return found
    return None


def _slots(model: PreTrainedModel) -> tuple[_Slot, ...]:
    """Every parameter, tied ones once, and every buffer that a checkpoint may hold."""
    found: dict[int, list[tuple[str, dict[str, Any], str]]] = {}
    values: dict[int, torch.Tensor] = {}
    for module_name, module in model.named_modules():
        prefix = f"{module_name}." if module_name else ""
        passing = module._non_persistent_buffers_set  # noqa: SLF001 (there is no other way)
        for holder in (module._parameters, module._buffers):  # noqa: SLF001 (likewise)
            for name, value in holder.items():
                if value is not None and name not in passing:
                    values[id(value)] = value
                    found.setdefault(id(value), []).append((prefix + name, holder, name))
    return tuple(
        _Slot(
            tuple(full_name for full_name, _, _ in places),
            tuple((holder, name) for _, holder, name in places),
            values[key].shape,
            isinstance(values[key], nn.Parameter),
        )
        for key, places in found.items()
    )


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
