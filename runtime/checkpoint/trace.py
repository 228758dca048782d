"""The order in which a model first uses its tensors, seen on a forward pass.

The pass runs the model's own code on the meta device: every module is called with real shapes and
no data, so that tracing costs milliseconds and no memory, whatever the model's size.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from stoker.placement.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Trace:
    """`order` names every parameter and stored buffer, first used first.

    `tied` maps each name to all names of the same tensor; `tensor_parallel` maps a module name
    pattern (`*` stands for a number) to how transformers would split it.
    """

    order: tuple[str, ...]
    tied: Mapping[str, tuple[str, ...]]
    base_prefix: str
    tensor_parallel: Mapping[str, str]

    def file_names(self, name: str) -> tuple[str, ...]:
        """The names under which a checkpoint may hold the model's tensor `name`."""
        prefix = f"{self.base_prefix}."
        other = name.removeprefix(prefix) if name.startswith(prefix) else prefix + name
        return (name, other)

    def stored_names(self, name: str, stored: Container[str]) -> tuple[list[str], list[str]]:
        """Where a checkpoint that holds `stored` keeps `name`: itself, and as a tied tensor."""
        found = [n for n in self.file_names(name) if n in stored]
        tied = [n for t in self.tied.get(name, ()) for n in self.file_names(t) if n in stored]
        return found, tied

    def tensor_parallel_dimension(self, name: str, dimensions: int) -> int | None:
        """The dimension that a tensor-parallel split cuts: 0 by columns, 1 by rows."""
        module, _, leaf = name.rpartition(".")
        for candidate in self.file_names(module):
            style = next((s for p, s in self.tensor_parallel.items() if _matches(p, candidate)), "")
            if style.startswith(("colwise", "embedding_rowwise")):
                return 0
            # The bias of a row-wise layer is added once, after the parts have been summed.
            if style.startswith("rowwise") and leaf == "weight" and dimensions > 1:
                return 1
        return None


def trace(folder: Path) -> Trace:
    """Trace the model whose config.json lies in `folder`; CheckpointError says why it cannot be."""
    import torch
    import transformers

    try:
        kind = orjson.loads((folder / "config.json").read_bytes())["model_type"]
        # Not AutoConfig, which would offer to run code that lies in the folder.
        config = transformers.CONFIG_MAPPING[kind].from_pretrained(folder, local_files_only=True)
        architecture = (config.architectures or ["none"])[0]
        model_class = getattr(transformers, architecture, None)
        if model_class is None:
            raise _untraceable(folder, f"the architecture {architecture}, which is not known")
        with torch.device("meta"):
            model = model_class(config).eval()
        order = _first_uses(torch, model)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError) as error:
        raise _untraceable(folder, f"{type(error).__name__}: {error}") from error
    plan = {**(config.base_model_tp_plan or {}), **(model_class._tp_plan or {})}  # noqa: SLF001
    return Trace(tuple(order), _ties(model), model.base_model_prefix, plan)


def _first_uses(torch: Any, model: Any) -> list[str]:
    order: dict[str, None] = {}
    for name, module in model.named_modules():
        own = [n for n, _ in module.named_parameters(name, recurse=False)]
        own += [n for n, _ in module.named_buffers(name, recurse=False)]
        if own:
            module.register_forward_pre_hook(_note(order, own))
    inputs = {key: value.to("meta") for key, value in model.dummy_inputs.items()}
    with torch.inference_mode():
        model(**inputs)
    return list(order)


def _note(order: dict[str, None], names: Iterable[str]) -> Any:
    def hook(module: Any, arguments: Any) -> None:  # noqa: ARG001 (torch calls it with both)
        order.update(dict.fromkeys(names))

    return hook


def _ties(model: Any) -> dict[str, tuple[str, ...]]:
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return {name: tuple(group) for group in groups.values() for name in group}


def _matches(pattern: str, module: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", r"\d+"), module) is not None


def _untraceable(folder: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"Expected a model in {folder} that transformers can build and run, found {found:.300}.",
        "Serve the model unpacked: name its folder or prefix as it is.",
    )
