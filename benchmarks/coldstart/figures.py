"""Medians, what is compared within rounds, and the figures of the last line."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from starts import FUNCTIONS, PEERS, STREAMS, SUBJECTS

MIB = 1 << 20
# One mapping of key to samples for each round; a key is "chat dram", or the name of a peer.
Round = Mapping[str, Any]
Rounds = list[Round]


def value(taken: Round, key: str) -> float | None:
    """The round's median milliseconds to the first token; None where it has no sample."""
    samples = taken.get(key)
    return statistics.median(float(s["ttft_ms"]) for s in samples) if samples else None


def over(rounds: Rounds, above: str, below: str) -> float | None:
    """Median over the rounds of how many milliseconds one takes longer."""
    return _median(rounds, lambda taken: _both(taken, above, below, lambda a, b: a - b))


def ratio(rounds: Rounds, above: str | Iterable[str], below: str) -> float | None:
    """Median over the rounds of one's time over another's; of several the fastest."""
    names = [above] if isinstance(above, str) else list(above)

    def one(taken: Round) -> float | None:
        found = [ms for name in names if (ms := value(taken, name)) is not None]
        base = value(taken, below)
        return min(found) / base if found and base else None

    return _median(rounds, one)


def ssd_bound_ms(weight_bytes: int, device_bytes_per_second: float, floor_ms: float) -> float:
    """1.15 times the longer of reading at the disk's speed and a start from memory, and 50 ms."""
    return 1.15 * max(weight_bytes / device_bytes_per_second * 1000, floor_ms) + 50


def wire_bound_ms(weight_bytes: int, bytes_per_second: float) -> float:
    """1.05 times what the wire takes, and 100 ms."""
    return 1.05 * weight_bytes / bytes_per_second * 1000 + 100


def overlap_bound_ms(load_ms: float, prefill_ms: float) -> float:
    """1.1 times the longer of the two that run side by side."""
    return 1.1 * max(load_ms, prefill_ms)


def figures(
    rounds: Rounds, weight_bytes: Mapping[str, int], wire: float
) -> dict[str, float | None]:
    """`weight_bytes` by function; `wire` is the throttled source's bytes per second."""
    chat_bytes = weight_bytes["chat"]
    found: dict[str, float | None] = {
        "dram_over_warm_ms": over(rounds, "chat dram", "chat warm"),
        "zygote_only_over_warm_ms": over(rounds, "chat zygote_only", "chat warm"),
        "parked_over_warm_ms": over(rounds, "chat parked", "chat warm"),
        "fresh_process_over_dram": ratio(rounds, "chat fresh_process", "chat dram"),
        "fresh_process_over_ssd_cold": ratio(rounds, "chat fresh_process_cold", "chat ssd"),
        "best_peer_over_dram": ratio(rounds, PEERS, "chat dram"),
        "ssd_over_bound": _median(rounds, lambda taken: _ssd_over_bound(taken, chat_bytes)),
        "s3_throttled_over_wire": _scaled(rounds, "chat s3_throttled", chat_bytes / wire * 1000),
        "s3_throttled_over_bound": _scaled(
            rounds, "chat s3_throttled", wire_bound_ms(chat_bytes, wire)
        ),
        "overlap_over_bound": _median(rounds, _overlap_over_bound),
        "overhead_tokens_per_second_percent": overhead_percent(rounds, STREAMS[-1]),
        "overhead_ttft_ms": _median(
            rounds, lambda taken: _both_streams(taken, 1, "ttft_ms_p50", lambda a, b: a - b)
        ),
        "equal_answers_share_at_1": _median(rounds, lambda taken: equal_share(taken, 1)),
        "equal_answers_share_at_16": _median(rounds, lambda taken: equal_share(taken, 16)),
        "zygote_private_mb": _median(rounds, lambda t: _megabytes(t, "zygote_private")),
        "parked_private_mb": _median(rounds, lambda t: _megabytes(t, "parked_private")),
        "embed_parked_over_warm_ms": over(rounds, "embed parked", "embed warm"),
        "embed_dram_over_warm_ms": over(rounds, "embed dram", "embed warm"),
        "embed_zygote_only_over_warm_ms": over(rounds, "embed zygote_only", "embed warm"),
        "embed_fresh_process_over_dram": ratio(rounds, "embed fresh_process", "embed dram"),
    }
    for function in FUNCTIONS:
        for start in ("warm", "parked", "dram", "ssd", "s3"):
            key = f"{function} {start}"
            found[f"{function}_{start}_ms"] = _median(rounds, _value_of(key))
    return found


def overhead_percent(rounds: Rounds, streams: int) -> float | None:
    """By how much of the bare engine's tokens per second the runtime falls short."""
    return _median(
        rounds,
        lambda taken: _both_streams(
            taken, streams, "tokens_per_second", lambda ours, bare: 100 * (bare - ours) / bare
        ),
    )


def equal_share(taken: Round, streams: int) -> float | None:
    """Of the answers that both gave to so many streams at once, those that are the same text."""
    texts = [
        (mine["text"], theirs["text"])
        for pair in stream_pairs(taken, streams)
        for mine, theirs in zip(*(pair[name]["streams"] for name in SUBJECTS), strict=True)
    ]
    return sum(mine == theirs for mine, theirs in texts) / len(texts) if texts else None


def stream_pairs(taken: Round, streams: int) -> list[Any]:
    """Each time that so many streams were measured, one right after the other: by whom."""
    return list(taken.get("streams", {}).get(str(streams), []))


def percentile(values: Sequence[float], share: int) -> float:
    """Of few values too: between the two that lie next to it."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[share - 1]


def median_sample(rounds: Rounds, key: str) -> Mapping[str, Any] | None:
    """The sample in the middle of all of that key."""
    samples = [sample for taken in rounds for sample in taken.get(key, [])]
    samples.sort(key=lambda sample: float(sample["ttft_ms"]))
    return samples[(len(samples) - 1) // 2] if samples else None


def _ssd_over_bound(taken: Round, weight_bytes: int) -> float | None:
    took, floor = value(taken, "chat ssd"), value(taken, "chat parked")
    device = taken.get("device_bytes_per_second")
    if took is None or floor is None or not device:
        return None
    return took / ssd_bound_ms(weight_bytes, device, floor)


def _overlap_over_bound(taken: Round) -> float | None:
    samples = taken.get("chat overlap")
    if not samples:
        return None
    (found,) = samples
    return float(found["ttft_ms"]) / overlap_bound_ms(found["load_ms"], found["prefill_ms"])


def _megabytes(taken: Round, what: str) -> float | None:
    memory = taken.get("zygote_memory")
    return memory[what] / 1e6 if memory else None


def _scaled(rounds: Rounds, key: str, by: float) -> float | None:
    def one(taken: Round) -> float | None:
        took = value(taken, key)
        return None if took is None else took / by

    return _median(rounds, one)


def _value_of(key: str) -> Callable[[Round], float | None]:
    return lambda taken: value(taken, key)


def _both(
    taken: Round, first: str, second: str, combine: Callable[[float, float], float]
) -> float | None:
    a, b = value(taken, first), value(taken, second)
    return None if a is None or b is None else combine(a, b)


def _both_streams(
    taken: Round, streams: int, what: str, combine: Callable[[float, float], float]
) -> float | None:
    found = [
        combine(pair["stoker"][what], pair["transformers"][what])
        for pair in stream_pairs(taken, streams)
    ]
    return statistics.median(found) if found else None


def _median(rounds: Rounds, one: Callable[[Round], float | None]) -> float | None:
    known = [found for taken in rounds if (found := one(taken)) is not None]
    return round(statistics.median(known), 3) if known else None
