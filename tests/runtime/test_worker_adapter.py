"""Functions with adapters of their own share one base, which none of them changes."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from harness import tiny_model
from harness.adapters import write_adapter
from harness.workers import ParkedProcess, Resident, WorkerProcess, ZygoteProcess, resident, worker
from stoker.native import Pool
from stoker.placement.records import FunctionRecord, Scaling

# PEFT itself asks for what transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

CHAT = FunctionRecord("chat", "ns", "image", task="chat", scaling=Scaling(concurrency=2))
BODY = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 40}


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write_llama(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def adapter_folders(base_folder: Path) -> list[Path]:
    folders = [base_folder.parent / f"adapter-{seed}" for seed in range(2)]
    return [write_adapter(base_folder, folder, seed=seed) for seed, folder in enumerate(folders)]


@pytest.fixture
def pool() -> Pool:
    return Pool(128 << 20)


@pytest.fixture
def base(base_folder: Path, pool: Pool, tmp_path: Path) -> Resident:
    made = resident(base_folder, pool, tmp_path)
    made.read()
    return made


def _text(running: WorkerProcess, body: dict[str, Any] = BODY) -> str:
    status, payload, _ = running.call("/v1/chat/completions", body)
    assert status == 200, (payload, running.log())
    text: str = json.loads(payload)["choices"][0]["message"]["content"]
    return text


def _generated(base_folder: Path, adapter_folder: Path | None) -> str:
    model = AutoModelForCausalLM.from_pretrained(base_folder, attn_implementation="sdpa")
    if adapter_folder is not None:
        model = PeftModel.from_pretrained(model, adapter_folder)
    alphabet = tiny_model.byte_tokenizer()
    prompt = torch.tensor([alphabet.encode("[user]hi[assistant]").ids])
    tokens = model.eval().generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=40,
        do_sample=False,
        pad_token_id=0,
    )[0, prompt.shape[1] :]
    return alphabet.decode(tokens.tolist()).rstrip("\ufffd")


def _own_pages_of_the_pool(pid: int) -> int:
    """Bytes of the pool of which the process has made copies for itself."""
    copied, in_pool = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            in_pool = "memfd:" in line
        elif in_pool and line.startswith("Anonymous:"):
            copied += int(line.split()[1]) * 1024
    return copied


def _chunks(base: Resident) -> list[bytes]:
    return [bytes(base.pool.chunk(chunk)) for chunk in base.start.chunks]


def test_each_function_answers_as_peft_does_and_the_base_is_held_once(
    zygote: ZygoteProcess,
    base: Resident,
    base_folder: Path,
    adapter_folders: Sequence[Path],
    tmp_path: Path,
) -> None:
    before = _chunks(base)
    adapters = [resident(folder, base.pool, tmp_path) for folder in adapter_folders]
    for adapter in adapters:
        adapter.read()
    with (
        worker(zygote, CHAT, tmp_path / "plain", checkpoint=base, instance_id="i-0") as plain,
        worker(
            zygote,
            CHAT,
            tmp_path / "first",
            checkpoint=base,
            adapter=adapters[0],
            instance_id="i-1",
        ) as first,
        worker(
            zygote,
            CHAT,
            tmp_path / "second",
            checkpoint=base,
            adapter=adapters[1],
            instance_id="i-2",
        ) as second,
    ):
        running = (plain, first, second)
        found = [_text(each) for each in running]
        copied = [_own_pages_of_the_pool(each.pid) for each in running]

    expected = [_generated(base_folder, folder) for folder in (None, *adapter_folders)]
    assert found == expected
    assert len(set(found)) == 3
    assert copied == [0, 0, 0]
    assert _chunks(base) == before


def test_a_function_made_ahead_of_its_weights_takes_any_adapter(
    zygote: ZygoteProcess,
    base: Resident,
    base_folder: Path,
    adapter_folders: Sequence[Path],
    tmp_path: Path,
) -> None:
    function = replace(CHAT, max_context=200)
    adapters = [resident(folder, base.pool, tmp_path) for folder in adapter_folders]
    for adapter in adapters:
        adapter.read()
    ParkedProcess(zygote, function, tmp_path / "parked", checkpoint=base).end()
    for number, adapter in enumerate(adapters):
        with worker(
            zygote, function, tmp_path / str(number), checkpoint=base, adapter=adapter
        ) as running:
            assert _text(running) == _generated(base_folder, adapter_folders[number])
            assert running.status().from_template


def test_a_function_waits_for_an_adapter_that_comes_after_its_base(
    zygote: ZygoteProcess,
    base: Resident,
    base_folder: Path,
    adapter_folders: Sequence[Path],
    tmp_path: Path,
) -> None:
    adapter = resident(adapter_folders[0], base.pool, tmp_path)
    with worker(zygote, CHAT, tmp_path / "work", checkpoint=base, adapter=adapter) as running:
        loader = threading.Timer(0.5, adapter.read)
        loader.start()
        found = _text(running)
        assert running.status().event == "serving"
        loader.join()

    assert found == _generated(base_folder, adapter_folders[0])


def test_an_adapter_of_another_base_fails_the_start_with_its_place(
    zygote: ZygoteProcess, base: Resident, tmp_path: Path
) -> None:
    other = tiny_model.write_chat(tmp_path / "other", tiny_model.qwen3())
    adapter = resident(write_adapter(other, tmp_path / "adapter"), base.pool, tmp_path)
    adapter.read()
    with worker(zygote, CHAT, tmp_path / "work", checkpoint=base, adapter=adapter) as running:
        status = running.status()
        code, payload, _ = running.call("/v1/chat/completions", BODY)

    assert status.event == "failed"
    assert status.error is not None
    assert status.error["code"] == "checkpoint_invalid"
    assert "to fit the model" in status.error["cause"]
    assert (code, json.loads(payload)["error"]) == (400, status.error)
