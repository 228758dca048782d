"""LoRA adapters give the logits that PEFT gives, and leave the base alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModel, AutoModelForCausalLM

import stoker
from harness import s3 as s3_harness
from harness import tiny_model
from harness.adapters import write_adapter
from harness.fake_source import FakeSource
from stoker.deploy.s3server import S3Server
from stoker.placement.errors import CheckpointChanged, CheckpointError
from stoker.runtime.checkpoint import load_model as module
from stoker.runtime.checkpoint.resolve import is_adapter, resolve
from stoker.runtime.checkpoint.source_file import FileSource

# PEFT itself asks for what transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

TOKENS = torch.tensor([[5, 17, 200, 33, 8]])


@pytest.fixture(scope="module")
def adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tiny_llama, tmp_path_factory.mktemp("adapter") / "a")


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found = model(TOKENS)
    return found.logits if hasattr(found, "logits") else found.last_hidden_state


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "target_modules": "all-linear"},
        {"target_modules": ["q_proj", "down_proj"], "rank_pattern": {"down_proj": 2}},
        {"target_modules": r".*\.1\..*_proj", "alpha_pattern": {"k_proj": 3}},
        {"target_modules": "all-linear", "exclude_modules": ["k_proj"]},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float16},
    ],
)
def test_the_logits_are_those_of_peft(
    tiny_llama: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    folder = write_adapter(tiny_llama, tmp_path / "a", **options)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, attn_implementation="sdpa")
    expected = PeftModel.from_pretrained(base, folder).eval()

    found = stoker.load_model(tiny_llama, adapter=folder)

    assert not torch.equal(logits(found), logits(stoker.load_model(tiny_llama)))
    assert torch.equal(logits(found), logits(expected))
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())


def test_an_encoder_takes_an_adapter(tmp_path: Path) -> None:
    base = tiny_model.write_bert(tmp_path / "bert")
    folder = write_adapter(base, tmp_path / "a", target_modules=["query", "value"])
    expected = PeftModel.from_pretrained(AutoModel.from_pretrained(base), folder).eval()

    assert torch.equal(logits(stoker.load_model(base, adapter=folder)), logits(expected))


@pytest.mark.parametrize("packed", [False, True])
def test_base_and_adapter_may_lie_in_s3(
    tiny_llama: Path, packed_tiny: Path, adapter: Path, s3_environment: S3Server, packed: bool
) -> None:
    base = s3_harness.upload(
        s3_environment, packed_tiny if packed else tiny_llama, f"lora-base/{packed}"
    )
    uri = s3_harness.upload(s3_environment, adapter, "lora")

    found = stoker.load_model(base, adapter=uri)

    assert torch.equal(logits(found), logits(stoker.load_model(tiny_llama, adapter=adapter)))


def test_the_base_weights_stay_views_of_one_block(tiny_llama: Path, adapter: Path) -> None:
    model = stoker.load_model(tiny_llama, adapter=adapter)

    storages: dict[bool, set[int]] = {True: set(), False: set()}
    for name, weight in model.named_parameters():
        storages["lora_" in name].add(weight.untyped_storage().data_ptr())
    assert len(storages[False]) == 1
    assert storages[False].isdisjoint(storages[True])


def test_progress_counts_base_and_adapter(tiny_llama: Path, adapter: Path) -> None:
    told: list[tuple[int, int]] = []

    stoker.load_model(tiny_llama, adapter=adapter, on_progress=lambda *each: told.append(each))

    size = sum(
        path.stat().st_size
        for folder in (tiny_llama, adapter)
        for path in folder.glob("*.safetensors")
    )
    assert told[-1] == (size, size)
    assert [each for each in told if each[0] == size] == [(size, size)]


def test_an_adapter_resolves_as_one(tiny_llama: Path, adapter: Path) -> None:
    found = resolve(FileSource(adapter))

    assert is_adapter(found)
    assert "adapter_config.json" in {entry.name for entry in found.files}
    assert all(".lora_" in tensor.name for tensor in found.tensors)
    assert not is_adapter(resolve(FileSource(tiny_llama)))


def test_an_adapter_that_is_replaced_in_mid_load_is_refused(
    tiny_llama: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FakeSource.of_folder(adapter)
    opened = module.open_model
    monkeypatch.setattr(
        module, "open_model", lambda uri: source if "fake" in str(uri) else opened(uri)
    )

    def replace(name: str, offset: int) -> None:
        if name == "adapter_model.safetensors":  # its header; the weights come next
            source.files[name] += b" "

    source.before_read = replace
    with pytest.raises(CheckpointChanged):
        stoker.load_model(tiny_llama, adapter="s3://fake/a")


def changed(adapter: Path, folder: Path, **fields: Any) -> Path:
    shutil.copytree(adapter, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["no_such_proj"]},
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj", "v_proj", "k_proj"]},
        {"r": 8},
        {"r": 0},
        {"r": "many"},
    ],
)
def test_an_adapter_of_another_base_is_refused(
    tiny_llama: Path, adapter: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError, match="to fit the model"):
        stoker.load_model(tiny_llama, adapter=changed(adapter, tmp_path / "a", **fields))


def test_an_adapter_of_a_base_of_another_size_is_refused(adapter: Path, tmp_path: Path) -> None:
    other = tiny_model.write_llama(tmp_path / "other")

    with pytest.raises(CheckpointError, match="to fit the model"):
        stoker.load_model(other, adapter=adapter)


@pytest.mark.parametrize(
    "fields",
    [
        {"peft_type": "IA3"},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
        {"megatron_config": {"a": 1}, "megatron_core": "os"},
        {"layer_replication": [[0, 1]]},
    ],
)
def test_what_is_no_plain_lora_is_refused(
    tiny_llama: Path, adapter: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError, match="Expected a plain LoRA"):
        stoker.load_model(tiny_llama, adapter=changed(adapter, tmp_path / "a", **fields))


def test_models_and_adapters_are_not_taken_for_each_other(tiny_llama: Path, adapter: Path) -> None:
    with pytest.raises(CheckpointError, match="found a whole model"):
        stoker.load_model(tiny_llama, adapter=tiny_llama)
    with pytest.raises(CheckpointError, match="found an adapter"):
        stoker.load_model(adapter)
