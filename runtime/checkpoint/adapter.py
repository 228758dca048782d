"""LoRA adapters in PEFT's format, put beside the weights of a model that stay as they are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import torch
from transformers.modeling_utils import PreTrainedModel

from stoker.placement.errors import CheckpointError
from stoker.runtime.checkpoint.resolve import ADAPTER_CONFIG_NAME

ADAPTER = "default"
_FILE_PREFIX = "base_model.model."
_USED = (
    "r",
    "lora_alpha",
    "target_modules",
    "exclude_modules",
    "fan_in_fan_out",
    "use_rslora",
    "lora_bias",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
)
# What these do is more than a low-rank update: they change, add or repeat weights of the base.
_REFUSED = (
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "megatron_config",
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "monteclora_config",
    "velora_config",
)
_INITIALISED = (True, False, None, "gaussian", "orthogonal")


def preload() -> None:
    """Imports PEFT and uses it once, so that no fork of this process has to."""
    from peft import LoraConfig, inject_adapter_in_model

    model = torch.nn.Sequential(OrderedDict(linear=torch.nn.Linear(2, 2, device="meta")))
    config = LoraConfig(target_modules=["linear"], inference_mode=True)
    inject_adapter_in_model(config, model, ADAPTER, low_cpu_mem_usage=True)


def read_config(folder: Path, where: str) -> dict[str, Any]:
    """What adapter_config.json in `folder` says; CheckpointError if it is no plain LoRA."""
    path = folder / ADAPTER_CONFIG_NAME
    try:
        fields = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise _refused(where, f"{error}") from error
    if not isinstance(fields, dict) or fields.get("peft_type") != "LORA":
        found = fields.get("peft_type") if isinstance(fields, dict) else fields
        raise _refused(where, f"peft_type {found!r:.60}")
    refused = [name for name in _REFUSED if fields.get(name)]
    refused += ["bias"] if fields.get("bias", "none") != "none" else []
    start = fields.get("init_lora_weights", True)
    refused += ["init_lora_weights"] if start not in _INITIALISED else []
    if refused:
        raise _refused(where, f"{refused[0]}: {fields[refused[0]]!r:.60}")
    return fields


def attach_adapter(
    model: PreTrainedModel,
    fields: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    where: str,
) -> None:
    """Add the adapter that `fields` of `read_config` describe; the base is not copied.

    As PEFT does, weights of half precision compute in float32. CheckpointError when the adapter
    was made for another base.
    """
    # It takes a while to import, and most models come without an adapter.
    from peft import LoraConfig, inject_adapter_in_model

    try:
        config = LoraConfig(**{k: fields[k] for k in _USED if k in fields}, inference_mode=True)
        inject_adapter_in_model(config, model, ADAPTER, low_cpu_mem_usage=True)
        found = model.load_state_dict(_named(tensors), strict=False, assign=True)
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError) as error:
        raise _wrong_base(where, f"{error}") from error
    if found.unexpected_keys:
        raise _wrong_base(where, f"no place for {found.unexpected_keys[0]}")
    absent = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if absent:
        raise _wrong_base(where, f"no weight for {absent[0]}")
    model.requires_grad_(False)
    model.eval()


def _named(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """PEFT leaves the adapter's name out of the file."""
    named = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.removeprefix(_FILE_PREFIX).rpartition(".")
        half = tensor.dtype in (torch.float16, torch.bfloat16)
        named[f"{module}.{ADAPTER}.{leaf}"] = tensor.float() if half else tensor
    return named


def _refused(where: str, found: str) -> CheckpointError:
    return CheckpointError(
        f"Expected a plain LoRA adapter at {where}, found {found:.300}.",
        "Merge the adapter into its base with PEFT, and load the result.",
    )


def _wrong_base(where: str, found: str) -> CheckpointError:
    return CheckpointError(
        f"Expected the adapter at {where} to fit the model, found: {found:.300}.",
        "Load it with the model that base_model_name_or_path in its adapter_config.json names.",
    )
