"""Writes per second, and how long until a watcher in another process has seen a write.

    PYTHONPATH=tests python benchmarks/store/measure.py URL [WRITES]

Beside the store's own figures stands the limit of this disk in the same run: a write of one page
and an fdatasync.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from harness.store_child import open_for_test, start_child


def spread(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    p99 = ordered[int(len(ordered) * 0.99)]
    return (
        f"median {statistics.median(ordered) * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms, "
        f"most {ordered[-1] * 1e3:.2f} ms"
    )


def timed(function: Callable[[], object]) -> float:
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def syncs(count: int) -> Iterator[float]:
    with tempfile.NamedTemporaryFile(dir=".") as file:
        for _ in range(count):
            os.write(file.fileno(), bytes(4096))
            yield timed(lambda: os.fdatasync(file.fileno()))


def main(url: str, writes: int = 300) -> None:
    store = open_for_test(url)
    sys.stdout.write(f"fdatasync      {spread(list(syncs(writes)))}\n")
    with start_child(url, "watch", "/a") as child:
        assert child.stdout is not None
        assert child.stdin is not None
        while child.stdout.readline() != "ready\n":
            continue  # it first says what was there
        puts, seen = [], []
        for number in range(writes):
            begun = time.monotonic_ns()
            store.put("/a/b", str(number).encode())
            puts.append((time.monotonic_ns() - begun) / 1e9)
            told = int(child.stdout.readline().split()[2])
            seen.append((told - begun) / 1e9)
        child.stdin.close()
    sys.stdout.write(f"put            {spread(puts)}\n")
    sys.stdout.write(f"put until seen {spread(seen)}\n")
    burst = timed(lambda: [store.put("/b", b"x" * 500) for _ in range(writes)])
    sys.stdout.write(f"one writer     {writes / burst:.0f} puts/s\n")
    children = [start_child(url, "increment", f"/n/{n}", str(writes)) for n in range(3)]
    for child in children:
        child.wait()
    with start_child(url, "hold", "/held") as child:
        assert child.stdout is not None
        child.stdout.readline()
        gone: list[float] = []
        store.watch("/", lambda c: gone.append(time.perf_counter()) if not c.entry else None)
        killed = time.perf_counter()
        child.send_signal(signal.SIGKILL)
        while not gone:
            time.sleep(0.0005)
    sys.stdout.write(f"killed until its entry is seen gone {(gone[0] - killed) * 1e3:.1f} ms\n")
    store.close()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
