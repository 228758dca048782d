from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.native_load import TOTAL_BYTES, Bench
from stoker.native import CHUNK_BYTES, Progress


def test_a_wait_ends_with_the_watermark_the_load_or_the_time() -> None:
    progress = Progress(2, TOTAL_BYTES)
    with pytest.raises(TimeoutError, match="within"):
        progress.wait(1, 0.01)
    with pytest.raises(ValueError, match="at most"):
        progress.wait(TOTAL_BYTES + 1, 0)
    with pytest.raises(ValueError, match="ready"):
        progress.complete()
    progress.publish(1)
    assert progress.watermark_bytes == 0
    progress.publish(0)
    assert progress.wait(TOTAL_BYTES, 0) == TOTAL_BYTES
    failed = Progress(1, 1)
    failed.fail("é" * 2000)
    assert (failed.state, failed.error, failed.wait(1, 5)) == ("failed", "é" * 1024, 0)
    cancelled = Progress(1, 1)
    cancelled.cancel()
    cancelled.fail("too late")
    assert (cancelled.state, cancelled.error, cancelled.wait(1, 5)) == ("cancelled", "", 0)


def test_a_page_that_is_not_one_is_refused() -> None:
    with pytest.raises(ValueError, match="last of"):
        Progress(1, CHUNK_BYTES + 1)
    other = os.memfd_create("other")
    try:
        with pytest.raises(ValueError, match="progress page"):
            Progress.open(other)
    finally:
        os.close(other)


CHILD = """
import sys
from stoker.native import Mapping, Progress
progress_fd, pool_fd, total = map(int, sys.argv[1:])
progress = Progress.open(progress_fd)
print("waiting", progress.total_bytes, flush=True)
reached = progress.wait(total, 60)
mapping = Mapping(total)
mapping.map(pool_fd, [1, 0])
print(reached, progress.fetch_seconds, bytes(memoryview(mapping)[:4]))
try:
    progress.wait(0, 0)
finally:
    progress.fail("told by the child")
"""


def test_progress_and_bytes_reach_another_process(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    fds = (bench.progress.fd, bench.pool.reader_fd)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *map(str, fds), str(TOTAL_BYTES)],
        pass_fds=fds,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == f"waiting {TOTAL_BYTES}\n"
        bench.progress.fetch_seconds = 1.5
        bench.load.read(bench.requests)
        assert child.stdout.readline() == f"{TOTAL_BYTES} 1.5 {bench.octets[:4]!r}\n"
        assert child.wait(60) == 0
    finally:
        child.kill()
        child.communicate()
    assert (bench.progress.state, bench.progress.error) == ("failed", "told by the child")


def test_an_interrupt_ends_a_wait() -> None:
    program = (
        "import os, signal, threading\n"
        "from stoker.native import Progress\n"
        # A shell starts what runs in its background with SIGINT ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "try:\n"
        "    Progress(1, 1).wait(1, 60)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout == "interrupted\n", done.stderr
