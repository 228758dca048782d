"""The way of a function's secrets from the agent into its instance's own view of files.

The agent puts them into a memory file, whose descriptor travels with the start; the forked worker
reads it and lays them out as files (mounts.py). They are never on a disk.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping

import orjson


def packed(secrets: Mapping[str, bytes]) -> int:
    """The descriptor of a memory file that holds them."""
    content = orjson.dumps({n: base64.b64encode(v).decode() for n, v in secrets.items()})
    descriptor = os.memfd_create("stoker-secrets", os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    return descriptor


def unpacked(descriptor: int) -> dict[str, bytes]:
    """What `packed` put there; closes the descriptor."""
    with open(descriptor, "rb") as file:
        file.seek(0)  # the position is shared with whoever wrote
        fields: dict[str, str] = orjson.loads(file.read())
    return {name: base64.b64decode(value) for name, value in fields.items()}
