"""A process that opens a store and does one thing; tests kill it or read what it prints.

store_child.py URL hold PATH          puts an ephemeral entry, prints "ready", waits
store_child.py URL increment PATH N   adds 1 to the number at PATH, N times, by version
store_child.py URL watch PREFIX       prints "PATH VALUE NANOSECONDS" (monotonic) per change
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from harness.zookeeper import TOKEN
from stoker.placement.errors import VersionConflict
from stoker.placement.sqlite_store import SqliteStore
from stoker.placement.store import ABSENT, Change, Store

SESSION_SECONDS = 2.0


def open_for_test(url: str) -> Store:
    """As open_store, with a session short enough for tests."""
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return SqliteStore(Path(parts.path))
    from stoker.placement.zookeeper_store import ZooKeeperStore

    return ZooKeeperStore(parts.netloc, parts.path, TOKEN, session_seconds=SESSION_SECONDS)


def start_child(url: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, url, *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def increment(store: Store, path: str, count: int) -> None:
    done = 0
    while done < count:
        entry = store.get(path)
        number = int(entry.value) if entry else 0
        version = entry.version if entry else ABSENT
        try:
            store.put(path, str(number + 1).encode(), version=version)
            done += 1
        except VersionConflict:
            continue  # another one was first


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _say_change(change: Change) -> None:
    value = change.entry.value.decode() if change.entry else "-"
    _say(f"{change.path} {value} {time.monotonic_ns()}")


def main(url: str, command: str, path: str, *rest: str) -> None:
    store = open_for_test(url)
    if command == "increment":
        increment(store, path, int(rest[0]))
    elif command == "hold":
        store.put(path, b"held", ephemeral=True)
        if rest and os.fork() == 0:
            sys.stdin.read()
            os._exit(0)
        _say("ready")
        sys.stdin.read()
    else:
        store.watch(path, _say_change)
        _say("ready")
        sys.stdin.read()
    store.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
