"""The functions of the replay: what each rung of their ladders costs on one CPU node.

The figures are measured ones: a process that imports torch and transformers, a fork of the zygote
with the skeleton, mapped weights, the first step of the engine, and direct reads from an SSD.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from stoker.placement.ladder import Ladder, Layer, Rung

MIB = 1 << 20
GIB = 1 << 30

IMPORT_SECONDS = 3.2
# Private pages of the process; the libraries' code is shared through the page cache anyway.
IMPORT_BYTES = 260 * MIB
SKELETON_SECONDS = 0.035
SKELETON_BYTES = 60 * MIB
SSD_BYTES_PER_SECOND = 2.6 * GIB
MAP_SECONDS = 0.016
ENGINE_SECONDS = 0.1
ENGINE_BYTES = 64 * MIB
# Key-value blocks beside the weights.
CACHE_SHARE = 0.1
# Published checkpoints in bf16, by their parameters in billions: MiniLM, bge-small, e5-base;
# SmolLM2, Qwen2.5, Llama 3.2, Gemma 2, Phi-3, Mistral, Llama 3.1.
WEIGHT_BYTES = tuple(
    int(billions * 2e9)
    for billions in (
        *(0.023, 0.033, 0.109),
        *(0.135, 0.362, 0.494, 1.24, 1.54, 1.71, 2.61, 3.21, 3.82, 7.25, 8.03),
    )
)
# One in so many functions brings its own requirements.
OWN_ENVIRONMENT_EVERY = 10


@dataclass(frozen=True, slots=True)
class Zoo:
    """`functions_per_model` of 1: every function has weights of its own."""

    functions: int
    functions_per_model: int
    seed: int

    def ladders(self) -> dict[str, Ladder]:
        draw = random.Random(f"zoo {self.seed}")
        count = -(-self.functions // self.functions_per_model)
        sizes = [draw.choice(WEIGHT_BYTES) for _ in range(count)]
        order = [number % count for number in range(self.functions)]
        draw.shuffle(order)
        return {
            f"f{number}": _ladder(f"f{number}", f"model{model}", sizes[model], number)
            for number, model in enumerate(order)
        }


def _ladder(function: str, model: str, weight_bytes: int, number: int) -> Ladder:
    own = number % OWN_ENVIRONMENT_EVERY == OWN_ENVIRONMENT_EVERY - 1
    environment = f"environment-{function}" if own else "environment"
    cache_bytes = int(CACHE_SHARE * weight_bytes)
    return Ladder(
        function,
        (
            Layer(Rung.IMPORTED, environment, IMPORT_BYTES, IMPORT_SECONDS),
            Layer(Rung.SKELETON, f"{function}/skeleton", SKELETON_BYTES, SKELETON_SECONDS),
            Layer(Rung.HOST, f"{model}/host", weight_bytes, weight_bytes / SSD_BYTES_PER_SECOND),
            # On a CPU the device's memory is the host's: the weights are mapped, not copied.
            Layer(Rung.DEVICE, f"{function}/device", 0, MAP_SECONDS),
            Layer(Rung.SERVING, f"{function}/serving", ENGINE_BYTES + cache_bytes, ENGINE_SECONDS),
        ),
    )
