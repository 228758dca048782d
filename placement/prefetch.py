"""What an idle SSD reads ahead into free memory. Pure.

Memory that nobody needs costs nothing, and a disk that nobody waits for neither. So what is most
likely to be called next goes into memory, as long as nothing else has to go for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

# Read in pieces, so that who waits for the disk waits for one of them at most.
PIECE_BYTES = 1 << 30


def next_to_read(
    on_ssd: Iterable[tuple[str, int]], free_bytes: int, rate: Callable[[str], float]
) -> str | None:
    """The digest to read next, of those on the SSD and not in memory with their missing bytes.

    `rate` is how often a checkpoint's functions are called, per second. What was never called
    comes last: it was deployed to be called.
    """
    best: tuple[float, str] | None = None
    for digest, missing_bytes in on_ssd:
        if missing_bytes <= free_bytes:
            key = (-rate(digest), digest)
            if best is None or key < best:
                best = key
    return best[1] if best else None
