"""Load a file in a process of its own and say what it took at most.

Prints `{"peak_bytes": n}`: the highest resident size beyond that before the load.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

import stoker


def resident_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def main(path: str, small: str, borrow: str, dtype: str) -> None:
    options = {"borrow": borrow == "yes", "dtype": getattr(torch, dtype, None)}
    del_after = stoker.load_file(small, **options)
    del del_after
    before = resident_bytes("VmRSS")
    tensors = stoker.load_file(path, **options)
    for tensor in tensors.values():
        tensor.view(torch.uint8)[:: 4096 // tensor.itemsize].sum()
    print(json.dumps({"peak_bytes": resident_bytes("VmHWM") - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
