from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.runtime.checkpoint.fetch_order import (
    PART_BYTES_AT_FIRST,
    PART_BYTES_MAXIMUM,
    PART_BYTES_MINIMUM,
    STARVED_SECONDS,
    Part,
    PartSize,
    Queue,
    next_queue,
)

MIB = 1 << 20


def queue(deadline: float | None, begun: float = 0.0, chunks: int = 1) -> Queue:
    made = Queue(deadline, begun)
    for ordinal in range(chunks):
        made.add(ordinal, 16 * MIB)
    return made


@pytest.mark.parametrize(
    ("deadlines", "first"),
    [
        ([5.0, 4.0, 6.0], 1),
        ([None, 1e9], 1),  # what a user waits for, however late, goes before a prefetch
        ([None, None], 0),
        ([3.0, 3.0], 0),
    ],
)
def test_the_earliest_deadline_goes_first_and_then_who_came_first(
    deadlines: list[float | None], first: int
) -> None:
    queues = [queue(deadline, begun / 10) for begun, deadline in enumerate(deadlines)]

    assert next_queue(queues, now=1.0) is queues[first]


def test_a_load_without_anything_queued_is_passed_over() -> None:
    empty, other = queue(1.0, chunks=0), queue(2.0)

    assert next_queue([empty, other], now=0.0) is other
    assert next_queue([empty], now=0.0) is None


def test_a_prefetch_that_somebody_comes_to_wait_for_is_urgent_from_then_on() -> None:
    prefetch, other = queue(None), queue(5.0, begun=1.0)

    prefetch.hasten(4.0)
    assert next_queue([prefetch, other], now=1.0) is prefetch
    prefetch.hasten(9.0)
    assert next_queue([prefetch, other], now=1.0) is prefetch


def test_a_cancelled_load_has_nothing_left() -> None:
    cancelled, other = queue(1.0, chunks=9), queue(2.0)

    cancelled.clear()

    assert next_queue([cancelled, other], now=0.0) is other


def test_a_prefetch_beside_an_endless_urgent_load_gets_one_part_every_two_seconds() -> None:
    urgent, prefetch = queue(0.0, chunks=1000), queue(None, chunks=10)
    served = []
    for tick in range(1, 101):
        now = tick / 10
        chosen = next_queue([urgent, prefetch], now)
        assert chosen is not None
        chosen.take(MIB, now)
        served.append(chosen is prefetch)

    assert sum(served) == 10 / STARVED_SECONDS


def test_the_head_chunk_is_taken_front_to_back_before_the_next() -> None:
    work = Queue(None, 0.0)
    for ordinal in (7, 2):
        work.add(ordinal, 5 * MIB)

    taken = [work.take(2 * MIB, 0.0) for _ in range(5)]

    assert taken[:2] == [Part(2, 0, 2 * MIB), Part(2, 2 * MIB, 4 * MIB)]
    assert taken[2:] == [
        Part(2, 4 * MIB, 5 * MIB),
        Part(7, 0, 2 * MIB),
        Part(7, 2 * MIB, 4 * MIB),
    ]


@given(
    sizes=st.lists(st.integers(1, 16 * MIB), min_size=1, max_size=20),
    part_sizes=st.lists(st.integers(PART_BYTES_MINIMUM, PART_BYTES_MAXIMUM), min_size=1),
)
def test_the_parts_of_a_load_cover_each_byte_once_in_order(
    sizes: list[int], part_sizes: list[int]
) -> None:
    work = Queue(None, 0.0)
    for ordinal, size in enumerate(sizes):
        work.add(ordinal, size)

    parts = []
    while work.bytes:
        parts.append(work.take(part_sizes[len(parts) % len(part_sizes)], 0.0))

    expected = [(ordinal, 0) for ordinal in range(len(sizes))]
    ends = [(part.ordinal, part.end) for part in parts]
    begins = [(part.ordinal, part.begin) for part in parts]
    assert begins == sorted(begins)
    assert set(begins) - set(ends) == set(expected)
    assert {end for end in ends if end not in begins} == set(enumerate(sizes))


@pytest.mark.parametrize(
    ("connection_bytes_per_second", "part_bytes"),
    [
        (1e3, PART_BYTES_MINIMUM),
        (12.5e6, 2 * MIB),
        (40e6, 8 * MIB),
        (500e6, PART_BYTES_MAXIMUM),
    ],
)
def test_a_part_is_what_a_connection_brings_in_a_moment(
    connection_bytes_per_second: float, part_bytes: int
) -> None:
    size = PartSize()
    assert size.bytes == PART_BYTES_AT_FIRST

    for _ in range(3):
        size.record(1_000_000, 1_000_000 / connection_bytes_per_second)

    assert size.bytes == part_bytes
