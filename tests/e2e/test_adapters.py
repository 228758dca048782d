"""An adapter is deployed beside its model, pinned as it is, and shares the model in memory."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness import tiny_model
from harness.adapters import write_adapter
from harness.stack import Stack, wait_until

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write_llama(tmp_path_factory.mktemp("lora") / "base")


def annotations(base: Path, adapter: Path | None) -> dict[str, str]:
    named = {"stoker/model": base.as_uri(), "stoker/task": "chat"}
    return named if adapter is None else named | {"stoker/adapter": adapter.as_uri()}


def resident_digests(stack: Stack) -> set[str]:
    (node,) = stack.system("GET", "/system/nodes").json()
    return {each["digest"] for each in node["residents"] if each["dram_bytes"]}


def test_functions_with_adapters_of_their_own_answer_differently_over_one_base(
    stack: Stack, base: Path
) -> None:
    adapters = [write_adapter(base, base.parent / f"a{seed}", seed=seed) for seed in range(2)]
    before = resident_digests(stack)
    texts = []
    for name, adapter in (("lora-none", None), ("lora-a", adapters[0]), ("lora-b", adapters[1])):
        assert stack.deploy(name, annotations(base, adapter)).status == 202
        answer = stack.chat(name, "Hi", temperature=0, max_tokens=30)
        assert answer.status == 200, answer.body
        texts.append(answer.json()["choices"][0]["message"]["content"])

    assert len(set(texts)) == 3
    wait_until(lambda: len(resident_digests(stack) - before) == 3, "one base and two adapters")
    for name in ("lora-none", "lora-a", "lora-b"):
        stack.remove(name)


def test_what_is_no_adapter_is_refused_at_deploy(stack: Stack, base: Path) -> None:
    answer = stack.deploy("lora-wrong", annotations(base, base))

    assert answer.status == 400
    assert "Expected an adapter" in answer.body.decode()
    assert stack.system("GET", "/system/function/lora-wrong").status == 404


def test_an_adapter_that_was_replaced_is_refused_until_it_is_deployed_again(
    stack: Stack, base: Path
) -> None:
    first, second = (write_adapter(base, base.parent / f"r{seed}", seed=seed) for seed in (5, 6))
    assert stack.deploy("lora-replaced", annotations(base, first)).status == 202
    shutil.copy(second / "adapter_model.safetensors", first / "adapter_model.safetensors")

    answer = stack.chat("lora-replaced", "Hi")

    assert (answer.status, answer.json()["error"]["code"]) == (409, "checkpoint_changed")
    stack.remove("lora-replaced")
