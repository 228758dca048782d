"""What a checkpoint is for, where the function does not say it."""

from __future__ import annotations

from pathlib import Path

import orjson

from stoker.placement.records import Task

_GENERATES = ("ForCausalLM", "LMHeadModel")


def model_task(task: Task, files_dir: Path) -> Task:
    """The function's task; for a function with code, what the model in `files_dir` can do."""
    if task != "custom":
        return task
    if (files_dir / "modules.json").is_file():
        return "embed"
    try:
        config = orjson.loads((files_dir / "config.json").read_bytes())
        architectures = config.get("architectures") or []
    except (OSError, orjson.JSONDecodeError, AttributeError):
        architectures = []  # whoever builds the model says what is wrong with it
    return "chat" if any(str(name).endswith(_GENERATES) for name in architectures) else "embed"
