from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness import tiny_model
from stoker.native import Progress
from stoker.placement.errors import ChunkCorrupt, StartFailed
from stoker.runtime.checkpoint.tensors import TensorPlace, tensor_views
from stoker.runtime.engine import skeleton as skeletons
from stoker.runtime.engine import weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model.write_llama(tmp_path / "llama")


def test_a_model_is_attached_without_a_copy_and_computes_the_same(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")

    model = skeletons.attach(skeletons.build_skeleton(folder, bare=False), tensors, None)

    name = "model.layers.0.mlp.up_proj.weight"
    assert dict(model.named_parameters())[name].data_ptr() == tensors[name].data_ptr()
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(model(ids).logits, tiny_model.llama()(ids).logits)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_dtype_casts_the_weights_and_spares_the_rotary_frequencies(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")

    model = skeletons.attach(skeletons.build_skeleton(folder, bare=False), tensors, torch.bfloat16)

    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    frequencies = {n: b for n, b in model.named_buffers() if n.endswith("inv_freq")}
    assert frequencies
    assert {buffer.dtype for buffer in frequencies.values()} == {torch.float32}


def test_a_missing_weight_fails_the_start_by_its_name(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]

    with pytest.raises(StartFailed, match=r"model\.norm\.weight"):
        skeletons.attach(skeletons.build_skeleton(folder, bare=False), tensors, None)


@pytest.mark.parametrize(
    "config",
    [{"model_type": "no-such-model"}, {"model_type": "bert", "architectures": ["BertModel"]}],
)
def test_a_config_that_is_no_language_model_fails_the_start(
    tmp_path: Path, config: dict[str, object]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))

    with pytest.raises(StartFailed):
        skeletons.build_skeleton(tmp_path, bare=False)


def test_a_misaligned_tensor_is_copied_and_an_aligned_one_is_not() -> None:
    memory = torch.zeros(64, dtype=torch.uint8)
    memory[8:16] = torch.tensor([1.5, 2.5]).view(torch.uint8)
    memory[21:29] = torch.tensor([3.5, 4.5]).view(torch.uint8)
    places = [
        TensorPlace("aligned", torch.float32, (2,), 8, 8),
        TensorPlace("misaligned", torch.float32, (2, 1), 21, 8),
    ]

    views = tensor_views(memory, places)

    assert views["aligned"].data_ptr() == memory.data_ptr() + 8
    assert views["aligned"].tolist() == [1.5, 2.5]
    assert views["misaligned"].tolist() == [[3.5], [4.5]]


def test_a_failed_load_raises_the_error_that_ended_it() -> None:
    progress = Progress(1, 1000)
    progress.fail(json.dumps(ChunkCorrupt("Wrong.", "Again.", chunk=1).to_wire()))

    with pytest.raises(ChunkCorrupt, match="Wrong"):
        weights.wait_for_bytes(progress, 1000)


def test_a_load_that_stalls_or_is_cancelled_fails_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weights, "STALL_SECONDS", 0.01)
    progress = Progress(1, 1000)

    with pytest.raises(StartFailed, match="0 of 1000 bytes"):
        weights.wait_for_bytes(progress, 1000)
    progress.cancel()
    with pytest.raises(StartFailed, match="cancelled"):
        weights.wait_for_bytes(progress, 1000)
