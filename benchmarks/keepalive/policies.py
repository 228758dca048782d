"""The policies of the replay, each with the ladders that it works on.

Containers hold a function whole, with nothing shared, as most platforms do. On the ladder all
policies share layers and climb as fast as Stoker's own; only the decisions differ.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

from stoker.placement.keepalive import FIXED_SECONDS, Policy
from stoker.placement.ladder import Ladder, whole
from stoker.placement.policies import (
    BreakEven,
    Fixed,
    GreedyDual,
    HybridHistogram,
    Ladders,
    LeastRecentlyUsed,
    RainbowCake,
)
from stoker.placement.replay import Outcome, Request, replay

FIXED = "containers: fixed 600 s"
LRU = "containers: LRU"
LRU_ON_LADDER = "ladder: LRU"
STOKER = "ladder: Stoker"
STOKER_PRICED = "ladder: Stoker, fixed's memory"
# The search for the price at which the memory agrees.
PRICE_RANGE = 100.0
PRICE_STEPS = 8


def outcomes(
    ladders: Mapping[str, Ladder],
    requests: Sequence[Request],
    capacity: int,
    end: float,
    *,
    priced: bool,
) -> Iterator[tuple[str, Outcome]]:
    """Each policy's outcome, by name; `priced` adds Stoker with as much memory as fixed holds."""
    containers = {name: whole(ladder) for name, ladder in ladders.items()}
    price = reference_price(ladders)

    def run(functions: Mapping[str, Ladder], policy: Policy) -> Outcome:
        return replay(functions, requests, policy, capacity, end)

    fixed = run(containers, Fixed())
    yield FIXED, fixed
    yield LRU, run(containers, LeastRecentlyUsed())
    yield "containers: hybrid histogram", run(containers, HybridHistogram())
    yield "containers: greedy-dual", run(containers, GreedyDual())
    yield "ladder: fixed 600 s", run(ladders, Fixed())
    yield LRU_ON_LADDER, run(ladders, LeastRecentlyUsed())
    yield "ladder: break-even", run(ladders, BreakEven(price))
    yield "ladder: RainbowCake", run(ladders, RainbowCake(price))
    yield "ladder: greedy-dual", run(ladders, GreedyDual())
    yield STOKER, run(ladders, Ladders())
    if not priced:
        return
    # The price at which Stoker holds, on average, no more than the fixed time does.
    low, high = price / PRICE_RANGE, price * PRICE_RANGE
    best = run(ladders, Ladders(low))
    for _ in range(PRICE_STEPS):
        middle = math.sqrt(low * high)
        tried = run(ladders, Ladders(middle))
        if tried.byte_seconds <= fixed.byte_seconds:
            low, best = middle, tried
        else:
            high = middle
    yield STOKER_PRICED, best


def reference_price(ladders: Mapping[str, Ladder]) -> float:
    """Byte-seconds for a second of a start: at it the median function breaks even at 600 s."""
    return FIXED_SECONDS * statistics.median(
        ladder.byte_count / ladder.start_seconds() for ladder in ladders.values()
    )
