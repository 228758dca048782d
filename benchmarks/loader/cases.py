"""What is measured: which loader, in which condition, with which allocator."""

from __future__ import annotations

import random
from dataclasses import dataclass

from ablation_steps import STEPS

HUGE = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
FORMATS = {"torch_load": "pt", "torch_load_mmap": "pt", "tensorizer": "tensors"}

_FILES = ("stoker", "torch_load", "torch_load_mmap", "safetensors", "fastsafetensors", "runai")
# Those that map the file allocate nothing, so that their allocator does not matter.
_ALLOCATING = ("torch_load", "fastsafetensors", "runai", "tensorizer")
_S3 = ("stoker_s3", "runai", "tensorizer_s3", "download_safetensors")
LOADERS: dict[str, tuple[str, ...]] = {
    "cold": ("stoker_pool", "stoker_pool_small_pages", *_FILES, "tensorizer"),
    "warm": ("stoker_copy", *_FILES, "tensorizer"),
    "idle": ("stoker", "stoker_pool", "safetensors", "runai"),
    "dram": ("stoker_attach", "stoker_attach_small_pages"),
    "ablation": tuple(f"ablation_{step}" for step in STEPS),
    "s3": _S3,
    "s3_throttled": ("stoker_s3", "runai"),
}
CONDITIONS = tuple(LOADERS)
FIO = ("fio_psync", "fio_io_uring", "fio_io_uring_32")
OURS = ("stoker", "ablation")


@dataclass(frozen=True)
class Case:
    condition: str
    loader: str
    huge: bool = False

    @property
    def key(self) -> str:
        return f"{self.loader}@huge" if self.huge else self.loader

    @property
    def small_pages(self) -> bool:
        """Whether the pool is to be in small pages, as where nobody has allowed larger ones."""
        return self.loader.endswith("_small_pages")

    @property
    def ours(self) -> bool:
        return self.loader.startswith(OURS)

    @property
    def file_name(self) -> str:
        return f"model.{FORMATS.get(self.loader, 'safetensors')}"


def cases(conditions: list[str], *, peers: bool) -> list[Case]:
    found = []
    for condition in conditions:
        for loader in LOADERS[condition]:
            case = Case(condition, loader)
            if not (case.ours or peers):
                continue
            found.append(case)
            if condition in ("cold", "warm") and loader in _ALLOCATING:
                found.append(Case(condition, loader, huge=True))
        if condition in ("cold", "ablation"):
            found += [Case(condition, job) for job in FIO]
    return found


def shuffled(found: list[Case], seed: int, number: int) -> list[Case]:
    """The order of round `number`: by condition, so that the cases of one find the same caches."""
    draw = random.Random(f"{seed} {number}")
    conditions = sorted({case.condition for case in found})
    draw.shuffle(conditions)
    order = []
    for condition in conditions:
        cases = [case for case in found if case.condition == condition]
        draw.shuffle(cases)
        order += cases
    return order
