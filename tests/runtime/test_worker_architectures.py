"""Models of other families go the whole way: packed, in the pool, behind HTTP, token for token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from harness import tiny_model
from harness.workers import ZygoteProcess, resident, worker
from stoker.native import Pool
from stoker.placement.records import FunctionRecord, Scaling
from stoker.runtime.checkpoint.pack import pack

CHAT = FunctionRecord("chat", "ns", "image", task="chat", scaling=Scaling(concurrency=2))
TEXT = "a question that is longer than the window of twenty-four tokens"


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
def test_a_packed_model_answers_as_plain_generate_does(
    zygote: ZygoteProcess, tmp_path: Path, architecture: str
) -> None:
    model = tiny_model.LANGUAGE_MODELS[architecture]()
    packed = tmp_path / architecture
    pack(tiny_model.write_chat(tmp_path / "plain", model), packed)
    pool = Pool(32 << 20)
    checkpoint = resident(packed, pool, tmp_path)
    checkpoint.read()
    body = {
        "messages": [{"role": "user", "content": TEXT}],
        "temperature": 0,
        "max_tokens": 60,
    }
    with worker(zygote, CHAT, tmp_path / "work", checkpoint=checkpoint) as running:
        status, payload, _ = running.call("/v1/chat/completions", body)

    alphabet = tiny_model.byte_tokenizer()
    prompt = alphabet.encode(f"[user]{TEXT}[assistant]").ids
    tokens = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=60,
        do_sample=False,
        pad_token_id=0,
    )[0, len(prompt) :].tolist()
    assert status == 200, payload
    choice = json.loads(payload)["choices"][0]
    # The text alone would hide bytes that are no characters; the count would show an early end.
    assert json.loads(payload)["usage"]["completion_tokens"] == len(
        [token for token in tokens if token != tiny_model.END]
    )
    assert choice["message"]["content"] == alphabet.decode(tokens).rstrip("\ufffd")
