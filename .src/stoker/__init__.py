"""Stoker: a FaaS runtime for model functions whose cold starts nobody notices.

The loader's functions below are usable with no server running; everything else is reached
through the `stoker` command. Attributes are imported on first use, so that the command line
starts without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stoker.runtime.checkpoint.load_file import load_file, load_file_async
    from stoker.runtime.checkpoint.load_model import load_model, load_model_async
    from stoker.runtime.checkpoint.load_tensors import load_tensors, load_tensors_async
    from stoker.runtime.checkpoint.save_file import save_file

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "load_file",
    "load_file_async",
    "load_model",
    "load_model_async",
    "load_tensors",
    "load_tensors_async",
    "save_file",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'stoker' has no attribute {name!r}")
    module = importlib.import_module(f"stoker.runtime.checkpoint.{name.removesuffix('_async')}")
    return getattr(module, name)
