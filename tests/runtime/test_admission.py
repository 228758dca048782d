"""An instance runs so many, lets twice as many wait, and tells the rest when to come back."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack, ExitStack, suppress
from typing import Any

import pytest

from stoker.placement.errors import QueueFull
from stoker.runtime.admission import Admission


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def refusal_of(admission: Admission) -> QueueFull:
    with pytest.raises(QueueFull) as caught, admission.place():
        pass
    return caught.value


async def took(admission: Admission, clock: Clock, seconds: float) -> None:
    with admission.place():
        async with admission.slot():
            clock.now += seconds


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


def test_one_more_than_run_and_wait_is_refused_until_one_has_gone() -> None:
    admission = Admission(concurrency=2)
    with ExitStack() as places:
        for _ in range(5):
            places.enter_context(admission.place())
        with admission.place():
            assert "at most 6 requests" in refusal_of(admission).cause
        with admission.place():
            assert admission.inside == 6
    assert admission.inside == 0


def test_those_who_wait_run_in_the_order_in_which_they_came() -> None:
    async def story() -> None:
        admission = Admission(concurrency=1)
        order: list[int] = []

        async def request(number: int) -> None:
            with admission.place():
                async with admission.slot():
                    order.append(number)
                    await asyncio.sleep(0)

        await asyncio.gather(*(request(number) for number in range(3)))
        assert order == [0, 1, 2]

    run(story())


@pytest.mark.parametrize(
    ("seconds", "concurrency", "expected"),
    [
        ([], 2, 1.0),
        ([0.1], 2, 1.0),
        ([4.0], 2, 8.0),
        ([4.0], 16, 8.0),
        ([4.0, 9.0], 2, 10.0),
        ([600.0], 1, 120.0),
    ],
)
def test_when_to_come_back_follows_from_how_long_requests_took(
    seconds: list[float], concurrency: int, expected: float
) -> None:
    async def story() -> None:
        clock = Clock()
        admission = Admission(concurrency, clock)
        for each in seconds:
            await took(admission, clock, each)
        with ExitStack() as places:
            for _ in range(3 * concurrency):
                places.enter_context(admission.place())
            assert refusal_of(admission).retry_after_seconds == pytest.approx(expected)

    run(story())


def test_a_request_that_was_cut_short_teaches_nothing() -> None:
    async def story() -> None:
        clock = Clock()
        admission = Admission(1, clock)
        await took(admission, clock, 8.0)
        async with AsyncExitStack() as request:
            request.enter_context(suppress(ConnectionError))
            await request.enter_async_context(admission.slot())
            clock.now += 0.01
            raise ConnectionError
        with admission.place(), admission.place(), admission.place():
            assert refusal_of(admission).retry_after_seconds == pytest.approx(16.0)

    run(story())
