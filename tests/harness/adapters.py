"""LoRA adapters as PEFT writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM


def write_adapter(
    base: Path, folder: Path, dtype: torch.dtype = torch.float32, seed: int = 7, **options: Any
) -> Path:
    """A random LoRA for the model at `base`, saved by PEFT; `options` are its LoraConfig's."""
    auto = AutoModel if (base.name == "bert") else AutoModelForCausalLM
    torch.manual_seed(seed)
    chosen = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **options}
    model = get_peft_model(auto.from_pretrained(base), LoraConfig(**chosen))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)
    model.save_pretrained(folder)
    assert (folder / "adapter_model.safetensors").is_file()
    return folder
