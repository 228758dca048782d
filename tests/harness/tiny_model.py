"""Random models small enough for a test, with a tokenizer of bytes, as checkpoint folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_utils import PreTrainedModel

END = 256
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] not in ['user', 'assistant', 'system'] %}"
    "{{ raise_exception('no such role') }}{% endif %}[{{ m['role'] }}]{{ m['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def byte_tokenizer() -> Tokenizer:
    """Tokens 0 to 255 are bytes in the byte-level alphabet's order; 256 ends an answer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    return tokenizer


def _write_tokenizer(folder: Path) -> None:
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))


def llama(seed: int = 0, context_tokens: int = 256, width: int = 48) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=width,
        intermediate_size=width * 4 // 3,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context_tokens,
        bos_token_id=None,
        eos_token_id=END,
        initializer_range=0.4,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).eval()


def qwen3(seed: int = 0) -> Qwen3ForCausalLM:
    """Normalised queries and keys, a head of its own, heads wider than the model's share."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=257,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=END,
        initializer_range=0.4,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    return Qwen3ForCausalLM(config).eval()


def gemma3(seed: int = 0) -> Gemma3ForCausalLM:
    """Layers with a sliding window of 24 tokens among full ones, scaled embeddings."""
    torch.manual_seed(seed)
    config = Gemma3TextConfig(
        vocab_size=257,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=24,
        layer_types=[*["sliding_attention"] * 3, "full_attention"],
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=END,
        initializer_range=0.4,
        # Tied, a random model says its last token again for ever.
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    return Gemma3ForCausalLM(config).eval()


LANGUAGE_MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": llama,
    "qwen3": qwen3,
    "gemma3": gemma3,
}


def write_chat(folder: Path, model: PreTrainedModel) -> Path:
    """A chat model as Hugging Face saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    _write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


def write_llama(folder: Path, seed: int = 0, width: int = 48) -> Path:
    """A chat model in float32; `width` is that of its layers."""
    return write_chat(folder, llama(seed, width=width))


def write_bert(folder: Path) -> Path:
    """An encoder with mean pooling, in float32."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    BertModel(config).eval().save_pretrained(folder)
    _write_tokenizer(folder)
    return folder
