"""Room in the pool of a node: who waits for some is told of all that is given back."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from harness.waiting import eventually
from stoker.native import CHUNK_BYTES, Pool
from stoker.placement.errors import StartFailed
from stoker.runtime.checkpoint.dram import ALLOCATE_SECONDS_MAXIMUM, DramEntry, DramTier
from stoker.runtime.checkpoint.fetch import Loading
from stoker.runtime.checkpoint.ssd import SsdEntry


def checkpoint(folder: Path, name: str, chunk_count: int) -> SsdEntry:
    manifest = SimpleNamespace(
        digest=name, chunks=[None] * chunk_count, weight_bytes=chunk_count * CHUNK_BYTES
    )
    return cast(SsdEntry, SimpleNamespace(manifest=manifest, path=folder / name))


def begin(_chunks: list[int], _filled_count: int) -> Loading:
    """A load under way."""
    return cast(Loading, SimpleNamespace(complete=False, is_local=True, ahead=False))


def test_chunks_of_a_load_that_could_not_begin_go_to_who_waits_for_room(tmp_path: Path) -> None:
    tier = DramTier(Pool(4 * CHUNK_BYTES), lambda _: 1.0, lambda: 0, lambda _: None)
    # Nobody has it open any more, but its write-behind may go on for long.
    tier.unpin(tier.add(checkpoint(tmp_path, "busy", 2), begin))
    waiting: list[Future[DramEntry]] = []

    with ThreadPoolExecutor() as threads:

        def fail(_chunks: list[int], _filled_count: int) -> Loading:
            wanted = checkpoint(tmp_path, "waits", 2)
            waiting.append(threads.submit(tier.add, wanted, begin))
            eventually(lambda: tier._changed._waiters)  # type: ignore[attr-defined]
            raise StartFailed("It cannot begin.")

        with pytest.raises(StartFailed):
            tier.add(checkpoint(tmp_path, "fails", 1), fail)

        assert len(waiting[0].result(ALLOCATE_SECONDS_MAXIMUM / 3).chunks) == 2
