"""Load as each step of the ablation does."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from ablation_steps import STEPS

from stoker.native import CHUNK_BYTES, Load, Progress, ReadRequest, Region, digest, parse_header

Tensors = Mapping[str, torch.Tensor]


def load_call(step: str, target: str) -> Callable[[], Tensors]:
    """Prepares the step and returns the call to measure."""
    number = STEPS.index(step)
    if step == "by_tensor":
        return lambda: _by_tensor(target)
    byte_count = Path(target).stat().st_size
    reused = Region(byte_count) if number >= STEPS.index("reuse") else None
    if reused is not None:
        memoryview(reused)[::4096] = bytes(len(range(0, byte_count, 4096)))
    digests = _digests(target) if step == "digests" else None

    def load() -> Tensors:
        region = reused or Region(byte_count, number >= STEPS.index("huge_pages"))
        threads = 4 if number >= STEPS.index("threads") else 1
        _read(target, region, digests, threads, direct=number >= STEPS.index("direct"))
        return _views(region)

    return load


def _read(
    target: str, region: Region, digests: list[bytes] | None, threads: int, *, direct: bool
) -> None:
    offsets = range(0, len(region), CHUNK_BYTES)
    sizes = [min(CHUNK_BYTES, len(region) - offset) for offset in offsets]
    progress = Progress(len(sizes), len(region))
    expected: list[bytes | None] = list(digests) if digests else [None] * len(sizes)
    load = Load.into_region(region, sizes, expected, progress, borrow=False)
    load.read([ReadRequest(target, at, n) for n, at in enumerate(offsets)], threads, direct)


def _digests(target: str) -> list[bytes]:
    with open(target, "rb") as file:
        found = []
        while chunk := file.read(CHUNK_BYTES):
            found.append(digest(chunk))
        return found


def _views(region: Region) -> Tensors:
    start = 8 + int.from_bytes(memoryview(region)[:8], "little")
    return {
        name: _half(torch.frombuffer(region, dtype=torch.uint8, count=end - at, offset=start + at))
        .view(shape)
        for name, _, shape, at, end in parse_header(memoryview(region)[:start], len(region))
    }  # fmt: skip


def _by_tensor(target: str) -> Tensors:
    tensors = {}
    with open(target, "rb", buffering=0) as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        file.seek(0)
        entries = parse_header(file.read(start), os.fstat(file.fileno()).st_size)
        for name, _, shape, begin, end in entries:
            octets = torch.empty(end - begin, dtype=torch.uint8)
            left = memoryview(octets.numpy())
            file.seek(start + begin)
            while len(left):
                left = left[file.readinto(left) :]
            tensors[name] = _half(octets).view(shape)
    return tensors


def _half(octets: torch.Tensor) -> torch.Tensor:
    return octets.view(torch.float16)
