"""A forward pass runs behind the load: each layer waits for its own weights and no more."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import orjson
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stoker.native import CHUNK_BYTES, Progress
from stoker.placement.errors import ChunkCorrupt, StartFailed, StokerError
from stoker.runtime.checkpoint.tensors import TensorPlace, tensor_views
from stoker.runtime.engine.arrival import Arrival
from stoker.runtime.engine.skeleton import Skeleton, attach

TOKENS = torch.tensor([[5, 17, 200, 33, 8]])
CONFIG = LlamaConfig(
    vocab_size=256,
    hidden_size=512,
    intermediate_size=1536,
    num_hidden_layers=5,
    num_attention_heads=8,
    num_key_value_heads=4,
    tie_word_embeddings=True,
    attn_implementation="sdpa",
)


class Case:
    """A model whose layers lie in the order of `names`, each padded to chunks of its own."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.plain = LlamaForCausalLM(CONFIG).eval()
        groups: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in self.plain.state_dict().items():
            if name != "lm_head.weight":
                group = ".".join(name.split(".")[:3]) if ".layers." in name else name
                groups.setdefault(group, {})[name] = tensor
        self.chunks: dict[str, range] = {}
        places = []
        self.bytes = bytearray()
        for group, tensors in groups.items():
            first = len(self.bytes) // CHUNK_BYTES
            for name, tensor in tensors.items():
                raw = tensor.numpy().tobytes()
                places.append(
                    TensorPlace(name, tensor.dtype, tuple(tensor.shape), len(self.bytes), len(raw))
                )
                self.bytes += raw
            self.bytes += bytes(-len(self.bytes) % CHUNK_BYTES)
            self.chunks[group] = range(first, len(self.bytes) // CHUNK_BYTES)
        # What has not arrived is not a number: it would be seen in any result.
        self.memory = torch.full((len(self.bytes),), 0xFF, dtype=torch.uint8)
        self.progress = Progress(len(self.bytes) // CHUNK_BYTES, len(self.bytes))
        with torch.device("meta"):
            empty = LlamaForCausalLM(CONFIG)
        skeleton = Skeleton(empty, bare=False)
        self.model = attach(skeleton, tensor_views(self.memory, places), None)
        self.arrival = Arrival(self.progress, self.memory.data_ptr())
        self.arrival.guard(self.model)
        self.ran = [threading.Event() for _ in self.model.model.layers]
        for event, layer in zip(self.ran, self.model.model.layers, strict=True):
            layer.register_forward_hook(lambda *_, event=event: event.set())

    def arrive(self, group: str) -> None:
        for ordinal in self.chunks[group]:
            begin, end = ordinal * CHUNK_BYTES, (ordinal + 1) * CHUNK_BYTES
            octets = torch.frombuffer(self.bytes, dtype=torch.uint8)
            self.memory[begin:end] = octets[begin:end]
            self.progress.publish(ordinal)

    def forward(self) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = self.model(TOKENS).logits
            return logits


@pytest.fixture
def case() -> Iterator[Case]:
    made = Case()
    yield made
    made.progress.cancel()


class Running(threading.Thread):
    def __init__(self, case: Case) -> None:
        super().__init__(daemon=True)
        self.case = case
        self.logits: torch.Tensor | None = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.logits = self.case.forward()
        except StokerError as error:
            self.error = error


def test_each_layer_runs_when_its_own_weights_are_there(case: Case) -> None:
    running = Running(case)
    case.arrive("model.embed_tokens.weight")
    # Out of order: what comes ahead of its turn is used in its turn.
    case.arrive("model.layers.2")
    case.arrive("model.layers.0")
    assert case.ran[0].wait(20)
    assert not case.ran[1].wait(0.1)
    case.arrive("model.layers.1")
    assert case.ran[2].wait(20)
    assert not case.ran[3].wait(0.1)
    for group in ("model.layers.3", "model.layers.4", "model.norm.weight"):
        case.arrive(group)
    running.join(20)
    assert running.logits is not None
    with torch.inference_mode():
        assert torch.equal(running.logits, case.plain(TOKENS).logits)


def test_when_all_has_arrived_nothing_waits_any_more(case: Case) -> None:
    for group in case.chunks:
        case.arrive(group)
    case.progress.complete()
    assert case.arrival.ended.result(20) > 0
    case.forward()
    hooks = [hook for module in case.model.modules() for hook in module._forward_pre_hooks]
    assert hooks == []


def test_a_load_that_fails_ends_the_pass_with_its_error(case: Case) -> None:
    running = Running(case)
    case.arrive("model.embed_tokens.weight")
    failure = ChunkCorrupt("Expected this, found that.", "Push it again.", file="a", offset=3)
    case.progress.fail(orjson.dumps(failure.to_wire()).decode())
    running.join(20)
    assert isinstance(running.error, ChunkCorrupt)
    assert isinstance(case.arrival.ended.exception(20), ChunkCorrupt)


def test_a_cancelled_load_is_an_error_too(case: Case) -> None:
    running = Running(case)
    case.progress.cancel()
    running.join(20)
    assert isinstance(running.error, StartFailed)
