"""The NVIDIA GPUs of this machine, as its driver tells of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from stoker.placement.errors import DeviceFailed

# What every product name may begin with, and no function asks for.
_BRANDS = ("nvidia", "tesla", "geforce", "quadro")


@dataclass(frozen=True, slots=True)
class Gpu:
    """`name` is the product's, `identifier` names this one device in CUDA_VISIBLE_DEVICES."""

    name: str
    identifier: str
    memory_bytes: int

    @property
    def kind(self) -> str:
        """As functions ask for it: `h100`, `rtx4090`."""
        return kind_of(self.name)


@dataclass(frozen=True, slots=True)
class Driver:
    """`version` is empty where there is no driver."""

    version: str = ""
    gpus: tuple[Gpu, ...] = ()


def read_driver() -> Driver:
    """What the driver says; DeviceFailed if it is there and does not answer."""
    import pynvml  # loads nothing before nvmlInit

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            return Driver()
        raise _silent(error) from error
    try:
        version = pynvml.nvmlSystemGetDriverVersion()
        gpus = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            gpus.append(
                Gpu(
                    pynvml.nvmlDeviceGetName(handle),
                    pynvml.nvmlDeviceGetUUID(handle),
                    int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                )
            )
    except pynvml.NVMLError as error:
        raise _silent(error) from error
    finally:
        pynvml.nvmlShutdown()
    return Driver(version, tuple(gpus))


def kind_of(name: str) -> str:
    """The model in a product's name: `NVIDIA H100 80GB HBM3` is a `h100`.

    A number alone belongs to the word before it: `GeForce RTX 4090` is a `rtx4090`.
    """
    found: list[str] = re.findall("[a-z0-9]+", name.lower())
    words = [word for word in found if word not in _BRANDS]
    for place, word in enumerate(words):
        if word.isdigit() and place > 0:
            return words[place - 1] + word
        if not word.isdigit() and any(letter.isdigit() for letter in word):
            return word
    return "".join(words) or "gpu"


def largest_group(gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Those of the kind of which there are most; the first such kind. A node announces one kind."""
    kinds = [gpu.kind for gpu in gpus]
    return tuple(gpu for gpu in gpus if gpu.kind == max(kinds, key=kinds.count))


def _silent(error: object) -> DeviceFailed:
    return DeviceFailed(
        f"Expected the NVIDIA driver to answer, found: {error}.",
        "See what `nvidia-smi` says; a driver that was just updated needs a restart.",
    )
