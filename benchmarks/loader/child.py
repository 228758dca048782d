"""One load in a process of its own: imports, says so, waits for "go", loads, tells.

python child.py LOADER TARGET
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from proof import fingerprint, touch, warm_up


def loader(name: str, target: str) -> tuple[Callable[[], Mapping[str, Any]], Mapping[str, float]]:
    """Prepares the loader; the call to measure, and what it measures by itself."""
    kind, _, step = name.partition("_")
    if kind == "ablation":
        from ablation import load_call

        return load_call(step, target), {}
    if kind == "stoker":
        from ours import MARKS, OURS

        return OURS[name](target), MARKS
    from peers import PEERS

    return PEERS[name](target), {}


def main() -> None:
    name, target = sys.argv[1:3]
    # Some loaders print; the answer goes where nothing of theirs does.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    load, marks = loader(name, target)
    warm_up()
    print("ready", file=answers, flush=True)
    if not sys.stdin.readline():
        sys.exit(1)
    cpu_begun = time.process_time()
    begun = time.perf_counter()
    tensors = load()
    loaded = time.perf_counter()
    touch(tensors)
    touched = time.perf_counter()
    answer = {
        "load_seconds": loaded - begun,
        "seconds": touched - begun,
        "cpu_seconds": time.process_time() - cpu_begun,
        "rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "fingerprint": fingerprint(tensors),
        **marks,
    }
    print(json.dumps(answer), file=answers, flush=True)
    # What a loader would do at the end is not measured, and may take long.
    answers.close()
    os._exit(0)


if __name__ == "__main__":
    main()
