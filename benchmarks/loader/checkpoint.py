"""A checkpoint of random bytes with the tensor shapes of OPT, in every format that is measured."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from proof import fingerprint
from safetensors.torch import save_file

HALF_BYTES = 2
GIB = 1 << 30


def shapes(byte_count: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """OPT-2.7B with as many layers as fit, or a small relative of it below half a GiB."""
    hidden, words = (2560, 50272) if byte_count >= GIB // 2 else (256, 4096)
    yield "decoder.embed_tokens.weight", (words, hidden)
    yield "decoder.embed_positions.weight", (2050, hidden)
    layer_bytes = sum(HALF_BYTES * int(np.prod(shape)) for _, shape in _layer(0, hidden))
    rest = byte_count - HALF_BYTES * hidden * (words + 2050)
    for number in range(max(1, round(rest / layer_bytes))):
        yield from _layer(number, hidden)
    yield "decoder.final_layer_norm.weight", (hidden,)


def _layer(number: int, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    prefix = f"decoder.layers.{number}"
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        yield f"{prefix}.self_attn.{name}.weight", (hidden, hidden)
        yield f"{prefix}.self_attn.{name}.bias", (hidden,)
    yield f"{prefix}.fc1.weight", (4 * hidden, hidden)
    yield f"{prefix}.fc1.bias", (4 * hidden,)
    yield f"{prefix}.fc2.weight", (hidden, 4 * hidden)
    yield f"{prefix}.fc2.bias", (hidden,)
    for name in ("self_attn_layer_norm", "final_layer_norm"):
        yield f"{prefix}.{name}.weight", (hidden,)
        yield f"{prefix}.{name}.bias", (hidden,)


def write(folder: Path, byte_count: int, seed: int, errors: dict[str, str], *, peers: bool) -> str:
    """Write model.safetensors and, for peers, model.pt and model.tensors; the fingerprint.

    A format whose package is missing or fails is left out, and `errors` says why.
    """
    draw = np.random.default_rng(seed)
    tensors = {
        name: torch.frombuffer(
            bytearray(draw.bytes(HALF_BYTES * int(np.prod(shape)))), dtype=torch.float16
        ).view(shape)
        for name, shape in shapes(byte_count)
    }
    save_file(tensors, str(folder / "model.safetensors"))
    if not peers:
        return fingerprint(tensors)
    torch.save(tensors, folder / "model.pt")
    try:
        serializer = importlib.import_module("tensorizer").TensorSerializer(
            str(folder / "model.tensors")
        )
        serializer.write_state_dict(tensors)
        serializer.close()
    except Exception as error:  # noqa: BLE001 (a peer's own errors are part of the result)
        errors["tensorizer_format"] = f"{type(error).__name__}: {error}"
    return fingerprint(tensors)
