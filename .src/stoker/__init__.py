"""Stoker: a FaaS runtime for model functions whose cold starts nobody notices.

`load_file`, `load_model` and `save_file` are usable with no server running; everything else is
reached through the `stoker` command. Attributes are imported on first use, so that the command
line starts without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stoker.runtime.checkpoint.load_file import load_file
    from stoker.runtime.checkpoint.load_model import load_model
    from stoker.runtime.checkpoint.save_file import save_file

__version__ = "0.1.0"
__all__ = ["__version__", "load_file", "load_model", "save_file"]


def __getattr__(name: str) -> Any:
    if name == "load_file":
        from stoker.runtime.checkpoint.load_file import load_file

        return load_file
    if name == "load_model":
        from stoker.runtime.checkpoint.load_model import load_model

        return load_model
    if name == "save_file":
        from stoker.runtime.checkpoint.save_file import save_file

        return save_file
    raise AttributeError(f"module 'stoker' has no attribute {name!r}")
