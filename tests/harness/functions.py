"""Functions with code, and the events that they get."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from stoker.placement.records import FunctionRecord, Scaling

FUNCTION = FunctionRecord("tried", "ns", "image", scaling=Scaling(concurrency=2), generation=3)
EXAMPLES = Path(__file__).resolve().parents[2] / "functions"
FUNC_PYTHON = Path(sys.prefix) / "func-python"
EVENT_HEADERS = {
    "ce-id": "7",
    "ce-source": "/orders",
    "ce-type": "order.made",
    "ce-specversion": "1.0",
    "Content-Type": "application/json",
}
STRUCTURED = {
    "id": "7",
    "source": "/orders",
    "type": "order.made",
    "specversion": "1.0",
    "datacontenttype": "application/json",
    "data": {"n": 1},
}


def write_files(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder
