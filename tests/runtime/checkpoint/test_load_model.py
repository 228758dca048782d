"""`load_model` gives the model that transformers gives, bit for bit, and copies nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

import stoker
from harness import s3 as s3_harness
from harness import tiny_model
from stoker.deploy.s3server import S3Server
from stoker.placement.errors import (
    BadRequest,
    BadSpec,
    CheckpointMissing,
    ChunkCorrupt,
    StartFailed,
)
from stoker.runtime.checkpoint.load_model import load_model

TOKENS = torch.tensor([[5, 17, 200, 33, 8]])


def assert_same(folder: Path, model: torch.nn.Module) -> None:
    expected = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()
    ours, theirs = dict(model.named_parameters()), dict(expected.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in theirs.items():
        assert ours[name].dtype == parameter.dtype
        assert torch.equal(ours[name], parameter), name
    with torch.inference_mode():
        assert torch.equal(model(TOKENS).logits, expected(TOKENS).logits)


def test_a_folder_loads_bit_for_bit(tiny_llama: Path) -> None:
    model = load_model(tiny_llama)

    assert not model.training
    assert_same(tiny_llama, model)


def test_a_file_uri_and_a_packed_checkpoint_load_bit_for_bit(
    tiny_llama: Path, packed_tiny: Path
) -> None:
    assert_same(tiny_llama, load_model(packed_tiny.as_uri()))


@pytest.mark.parametrize("packed", [False, True])
def test_a_checkpoint_in_s3_loads_bit_for_bit(
    tiny_llama: Path, packed_tiny: Path, s3_environment: S3Server, packed: bool
) -> None:
    folder = packed_tiny if packed else tiny_llama
    uri = s3_harness.upload(s3_environment, folder, f"load-model/{packed}")

    assert_same(tiny_llama, load_model(uri))


def test_shards_load_bit_for_bit(tiny_llama: Path, tmp_path: Path) -> None:
    whole = AutoModelForCausalLM.from_pretrained(tiny_llama)
    whole.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1

    assert_same(tiny_llama, load_model(tmp_path))


def test_the_weights_are_views_of_one_block_of_memory(packed_tiny: Path) -> None:
    weights = list(load_model(packed_tiny).parameters())

    assert len({weight.untyped_storage().data_ptr() for weight in weights}) == 1


def test_a_dtype_may_be_asked_for(tiny_llama: Path) -> None:
    model = load_model(tiny_llama, dtype="float32")

    expected = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected.get_parameter(name))


def test_the_model_generates_as_the_original_does(tmp_path: Path) -> None:
    folder = tiny_model.write_llama(tmp_path / "chat")
    model = load_model(folder)
    expected = AutoModelForCausalLM.from_pretrained(folder)

    asked = {"max_new_tokens": 12, "do_sample": False}
    assert model.generation_config.eos_token_id == tiny_model.END
    assert torch.equal(model.generate(TOKENS, **asked), expected.generate(TOKENS, **asked))


def test_an_encoder_loads_without_a_head(tmp_path: Path) -> None:
    folder = tiny_model.write_bert(tmp_path / "bert")
    model, expected = load_model(folder), AutoModel.from_pretrained(folder).eval()

    with torch.inference_mode():
        found = model(TOKENS).last_hidden_state
        assert torch.equal(found, expected(TOKENS).last_hidden_state)


@pytest.mark.parametrize("remote", [False, True])
def test_a_flipped_bit_is_refused_with_both_digests(
    packed_tiny: Path, tmp_path: Path, s3_environment: S3Server, remote: bool
) -> None:
    folder = tmp_path / "flipped"
    shutil.copytree(packed_tiny, folder)
    weights = folder / "model.safetensors"
    payload = bytearray(weights.read_bytes())
    payload[-1] ^= 1
    weights.write_bytes(payload)
    uri = s3_harness.upload(s3_environment, folder, "flipped") if remote else str(folder)

    with pytest.raises(ChunkCorrupt) as caught:
        load_model(uri)
    assert caught.value.details["file"] == "model.safetensors"
    assert caught.value.details["expected"] != caught.value.details["found"]


def test_a_missing_weight_is_named(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "model")
    tensors = stoker.load_file(tiny_llama / "model.safetensors")
    del tensors["model.norm.weight"]
    stoker.save_file(tensors, tmp_path / "model" / "model.safetensors")

    with pytest.raises(StartFailed, match=r"model\.norm\.weight"):
        load_model(tmp_path / "model")


def test_bad_arguments_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="float8"):
        load_model(tiny_llama, dtype="float8")
    with pytest.raises(BadSpec):
        load_model("https://example.org/model")
    with pytest.raises(CheckpointMissing):
        load_model(tmp_path / "absent")


def test_the_package_offers_it() -> None:
    assert stoker.load_model is load_model
