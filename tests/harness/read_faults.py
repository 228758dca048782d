"""Loads a model in a process whose reads fail by read_faults.c.

`python read_faults.py SSD_DIR URI [MODEL_DIR]` with the model in MODEL_DIR behind an s3:// URI;
prints what came of it as JSON.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness.caches import GIB, WAIT_SECONDS, bytes_of, finish
from harness.fake_source import FakeSource
from stoker.native import CHUNK_BYTES, Pool
from stoker.placement.errors import StokerError
from stoker.runtime.checkpoint.settings import CheckpointSettings
from stoker.runtime.checkpoint.source import open_source
from stoker.runtime.checkpoint.tiers import CheckpointCache


def build(folder: Path) -> Path:
    """The library to preload."""
    library = folder / "read_faults.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


def run(library: Path, faults: dict[str, str], *arguments: object) -> dict[str, Any]:
    """What a process that loads under these faults prints."""
    done = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)],
        env={
            **os.environ,
            **{f"READ_FAULTS_{name}": value for name, value in faults.items()},
            "LD_PRELOAD": str(library),
            "PYTHONPATH": str(Path(__file__).parents[1]),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcome


def main() -> None:
    ssd_dir, uri, *model_dir = sys.argv[1:]
    remote = FakeSource.of_folder(Path(model_dir[0])) if model_dir else None
    cache = CheckpointCache(
        Path(ssd_dir),
        GIB,
        Pool(4 * CHUNK_BYTES),
        CheckpointSettings(),
        source_opener=lambda uri: remote or open_source(uri),
    )
    ref = cache.resolve(uri)
    if remote is not None:
        remote.reads.clear()
    outcome: dict[str, object] = {}
    residency = cache.open(ref)
    try:
        residency.wait(WAIT_SECONDS)
        outcome["sha256"] = hashlib.sha256(bytes_of(cache, residency)).hexdigest()
    except StokerError as error:
        outcome |= {"code": error.code, "cause": error.cause}
    finish(cache)
    cache.close()
    outcome["fetched"] = sorted(o // CHUNK_BYTES for _, o in remote.reads) if remote else []
    outcome["injected"] = ctypes.CDLL(None).read_faults_injected()
    sys.stdout.write(f"{json.dumps(outcome)}\n")


if __name__ == "__main__":
    main()
