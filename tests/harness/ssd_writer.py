"""Forks a process that loads a model through an SSD cache, for each line that it reads.

`python ssd_writer.py SSD_DIR MODEL_DIR`; prints the process's number when it begins, and a line
when it has ended. The process is there to be killed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from harness.caches import GIB, finish
from harness.fake_source import FakeSource
from stoker.native import CHUNK_BYTES, Pool
from stoker.runtime.checkpoint.settings import CheckpointSettings
from stoker.runtime.checkpoint.tiers import CheckpointCache


def load(ssd_dir: Path, source: FakeSource) -> None:
    pool = Pool(4 * CHUNK_BYTES)
    cache = CheckpointCache(
        ssd_dir, GIB, pool, CheckpointSettings(), source_opener=lambda uri: source
    )
    cache.open(cache.resolve(source.uri))
    finish(cache)
    cache.close()


def main() -> None:
    source = FakeSource.of_folder(Path(sys.argv[2]))
    while sys.stdin.readline():
        child = os.fork()
        if child == 0:
            sys.stdout.write(f"{os.getpid()}\n")
            sys.stdout.flush()
            load(Path(sys.argv[1]), source)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
