"""Requests for a simulation, drawn by seed: Gamma arrivals, Zipf popularity, lengths of a trace."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from heapq import merge

from stoker.placement.simulate_parts import Function, Request

# (prompt tokens, output tokens); the two of a request are drawn independently, as they are
# uncorrelated in real traces.
Lengths = Sequence[tuple[int, int]]


def zipf_shares(count: int, exponent: float) -> list[float]:
    """Each function's share of all requests, the most popular first; 0 for equal shares."""
    weights = [rank**-exponent for rank in range(1, count + 1)]
    total = sum(weights)
    return [weight / total for weight in weights]


def gamma_arrivals(
    rate: float, variation: float, seconds: float, draw: random.Random
) -> list[float]:
    """A renewal process of Gamma intervals with this coefficient of variation.

    It begins anywhere within an interval, so that bursts do not all begin together.
    """
    if rate <= 0.0:
        return []
    shape = variation**-2
    scale = 1.0 / (rate * shape)
    # Whoever looks at any time is more likely to see a long interval: Gamma of shape + 1.
    at = draw.random() * draw.gammavariate(shape + 1.0, scale)
    found = []
    while at < seconds:
        found.append(at)
        at += draw.gammavariate(shape, scale)
    return found


def drawn_requests(
    functions: Sequence[Function],
    lengths: Lengths,
    *,
    rate: float,
    variation: float,
    seconds: float,
    seed: int,
    zipf: float = 0.0,
) -> list[Request]:
    """Requests of all functions together at `rate` per second, in order of arrival."""
    draw = random.Random(f"requests {seed}")
    streams = []
    for function, share in zip(functions, zipf_shares(len(functions), zipf), strict=True):
        times = gamma_arrivals(rate * share, variation, seconds, draw)
        streams.append([(at, function) for at in times])
    found = []
    for number, (at, function) in enumerate(merge(*streams, key=lambda item: item[0])):
        prompt = draw.choice(lengths)[0]
        output = draw.choice(lengths)[1]
        found.append(made_request(number, function, at, prompt, output))
    return found


def made_request(
    number: int, function: Function, at: float, prompt_tokens: int, output_tokens: int
) -> Request:
    """A request that runs as long as its tokens take on the function's device."""
    prompt_seconds = prompt_tokens * function.prompt_token_seconds
    seconds = prompt_seconds + output_tokens * function.token_seconds
    return Request(number, function, at, prompt_tokens, output_tokens, seconds)


def node_failures(
    node_ids: Sequence[str], *, mean_seconds: float, down_seconds: float, end: float, seed: int
) -> list[tuple[float, str, float]]:
    """Each node fails after exponential times of this mean, and is down for so long."""
    draw = random.Random(f"failures {seed}")
    found = []
    for node_id in node_ids:
        at = draw.expovariate(1.0 / mean_seconds) if mean_seconds < math.inf else math.inf
        while at < end:
            found.append((at, node_id, down_seconds))
            at += down_seconds + draw.expovariate(1.0 / mean_seconds)
    return sorted(found)
