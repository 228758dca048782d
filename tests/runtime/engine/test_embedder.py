from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from stoker.placement.errors import ContextOverflow, StartFailed
from stoker.runtime.engine import skeleton as skeletons
from stoker.runtime.engine.embedder import Embedder, Pooling, read_pooling
from stoker.runtime.engine.tokenizer import load_codec


@pytest.fixture
def model() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    return BertModel(config).eval()


def test_texts_of_any_length_keep_their_order_and_their_vectors(model: BertModel) -> None:
    texts = [[1, 2, 3, 4, 5], [6], [7, 8, 9]]
    embedder = Embedder(model, Pooling(), 32)

    together = embedder.embed(texts)

    alone = [embedder.embed([text])[0] for text in texts]
    torch.testing.assert_close(torch.tensor(together), torch.tensor(alone), atol=1e-5, rtol=1e-4)
    hidden = model(torch.tensor([[6]])).last_hidden_state[0, 0]
    torch.testing.assert_close(torch.tensor(together[1]), hidden / hidden.norm())


def test_a_long_text_does_not_pad_the_short_ones(model: BertModel) -> None:
    passes: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(
        lambda _, __, inputs: passes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )

    Embedder(model, Pooling(), 32).embed([[1] * 32, [2], [3] * 3, [4] * 30])

    assert passes == [(2, 3), (2, 32)]


@pytest.mark.parametrize(("mode", "token"), [("cls", 0), ("lasttoken", 2)])
def test_other_poolings_take_their_token(model: BertModel, mode: str, token: int) -> None:
    pooling = Pooling(mode, normalize=False)  # type: ignore[arg-type]

    found = Embedder(model, pooling, 32).embed([[4, 5, 6], [1, 2, 3, 4, 5]])[0]

    expected = model(torch.tensor([[4, 5, 6]])).last_hidden_state[0, token]
    torch.testing.assert_close(torch.tensor(found), expected, atol=1e-5, rtol=1e-4)


def test_a_text_over_the_limit_is_refused_with_both_counts(model: BertModel) -> None:
    with pytest.raises(ContextOverflow) as caught:
        Embedder(model, Pooling(), 8).embed([[1] * 9])

    assert caught.value.details == {"prompt_tokens": 9, "context_tokens": 8}


def test_pooling_is_read_from_the_sentence_transformers_files(tmp_path: Path) -> None:
    assert read_pooling(tmp_path) == Pooling("mean", normalize=True)
    modules = [{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    settings = tmp_path / "1_Pooling" / "config.json"

    settings.write_text(json.dumps({"pooling_mode_cls_token": True}))
    assert read_pooling(tmp_path) == Pooling("cls", normalize=False)
    settings.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(StartFailed, match="max_tokens"):
        read_pooling(tmp_path)


def _minilm() -> Path:
    root = os.environ.get("STOKER_MODELS") or Path.home() / ".cache" / "stoker" / "models"
    return Path(root) / "all-minilm-l6-v2"


@pytest.mark.skipif(not _minilm().is_dir(), reason="functions/fetch_models.py has not run")
def test_minilm_finds_related_sentences_closer() -> None:
    skeleton = skeletons.build_skeleton(_minilm(), bare=True)
    tensors = load_file(_minilm() / "model.safetensors")
    embedder = Embedder(skeletons.attach(skeleton, tensors, None), read_pooling(_minilm()), 256)
    codec = load_codec(_minilm())
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "Interest rates rose again."]

    cat, kitten, rates = torch.tensor(embedder.embed([codec.encode(text) for text in texts]))

    assert float(cat @ kitten) > 0.5
    assert float(cat @ rates) < 0.3
