"""kill -9 of a node that writes its SSD cache, at any moment."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import checkpoints, ssd_writer
from harness.caches import GIB, WAIT_SECONDS, bytes_of, finish
from harness.fake_source import FakeSource
from stoker.native import CHUNK_BYTES, Pool
from stoker.runtime.checkpoint.settings import CheckpointSettings
from stoker.runtime.checkpoint.tiers import CheckpointCache


class Writer:
    """A process that loads the model again and again, and how long it takes when it may."""

    def __init__(self, ssd_dir: Path, model_dir: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, ssd_writer.__file__, str(ssd_dir), str(model_dir)],
            env={**os.environ, "PYTHONPATH": str(Path(ssd_writer.__file__).parents[1])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, kill_after_seconds: float | None) -> tuple[int, float]:
        """The exit code, minus the signal, of one process, and its seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("load\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        started = time.monotonic()
        if kill_after_seconds is not None:
            time.sleep(kill_after_seconds)
            with contextlib.suppress(ProcessLookupError):  # it was done before
                os.kill(pid, signal.SIGKILL)
        code = int(self._process.stdout.readline())
        return code, time.monotonic() - started

    def close(self) -> None:
        self._process.communicate(timeout=WAIT_SECONDS)


def restart_and_check(ssd_dir: Path, source: FakeSource) -> int:
    """Start a node on what is there; how many chunks of the three it found."""
    cache = CheckpointCache(
        ssd_dir, GIB, Pool(4 * CHUNK_BYTES), CheckpointSettings(), source_opener=lambda uri: source
    )
    assert [path for path in ssd_dir.rglob("*") if ".tmp" in path.name] == []
    ref = cache.resolve(source.uri)
    entry = cache._ssd.hold(ref.digest)
    found = set() if entry is None else set(entry.cached)
    source.reads.clear()
    residency = cache.open(ref)
    residency.wait(WAIT_SECONDS)
    finish(cache)
    assert bytes_of(cache, residency) == source.files["model.safetensors"]
    for name in ("config.json", "tokenizer.json"):
        assert (residency.files_dir / name).read_bytes() == source.files[name]
    # Each chunk that was found was good, or it would have been fetched.
    fetched = {offset // CHUNK_BYTES for name, offset in source.reads if "model" in name}
    assert fetched == {0, 1, 2} - found
    cache.close()
    return len(found)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "packed"])
def test_a_node_killed_while_it_writes_leaves_nothing_bad(
    tmp_path: Path, packed: bool, rounds: Callable[[int, int], int]
) -> None:
    model_dir = checkpoints.plain(tmp_path / "m", 40)
    if packed:
        checkpoints.packed(model_dir)
    source = FakeSource.of_folder(model_dir)
    ssd_dir = tmp_path / "ssd"
    chance = random.Random(packed)
    writer = Writer(ssd_dir, model_dir)
    code, seconds = writer.run(None)
    assert (code, restart_and_check(ssd_dir, source)) == (0, 3)
    wanted = rounds(3, 100)
    killed = partial = 0
    for _ in range(5 * wanted):  # some are done before they are killed, and do not count
        if killed == wanted:
            break
        (folder,) = ssd_dir.iterdir()
        if chance.random() < 0.3:
            shutil.rmtree(folder)
        else:
            for ordinal in chance.sample(range(3), chance.randint(1, 3)):
                (folder / "chunks" / str(ordinal)).unlink()

        code, took = writer.run(chance.uniform(0, seconds))

        killed += code == -signal.SIGKILL
        seconds = took if code == 0 else seconds
        partial += 0 < restart_and_check(ssd_dir, source) < 3
    writer.close()
    print(f"{killed} killed, {partial} times a part of the copy was found")
    assert killed == wanted
