"""Every block of code in docs/loading.md runs, in the order of the page."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from harness import s3 as s3_harness
from stoker.deploy.s3server import S3Server

PAGE = Path(__file__).resolve().parents[3] / "docs" / "loading.md"


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_the_page_runs(
    tiny_llama: Path, tmp_path: Path, s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_llama, tmp_path / "model")
    shutil.copy(tiny_llama / "model.safetensors", tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    get_peft_model(base, LoraConfig(target_modules=["q_proj"])).save_pretrained(
        tmp_path / "adapter"
    )
    s3_harness.upload(s3_environment, tiny_llama, "chat")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 9

    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)

    assert (tmp_path / "copy.safetensors").is_file()
    assert names["model"].config.model_type == "llama"
