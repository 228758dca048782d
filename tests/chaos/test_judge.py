"""The judge of histories says what must not be, and nothing of what may."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.judge import Verdict, judge
from harness.zookeeper_log import Event, SessionEnd, Write
from stoker.placement.main import EPOCH_PATH
from stoker.placement.records import (
    Assignment,
    FunctionRecord,
    LeaderRecord,
    NodeRecord,
    Scaling,
    encode,
)
from stoker.placement.view import LEADER_PATH

FUNCTION = FunctionRecord("f", "ns", "img", scaling=Scaling(maximum=2))
NODE = NodeRecord("n", "", 2, 0, 0, 2)
ORDER = Assignment("1-0", "f.ns", 1, "n", "n:1", 1, 0.0)
AGENT, LEADER = 7, 8


def put(path: str, value: bytes, version: int = 0, **fields: object) -> Write:
    return replace(Write(0, 1.0, LEADER, path, value, version, created=version == 0), **fields)


def order(record: Assignment, fence_version: int = 0) -> Write:
    return put(record.path, encode(record), fence=(EPOCH_PATH, fence_version))


BEGIN: list[Event] = [
    put(FUNCTION.path, encode(FUNCTION)),
    put(NODE.path, encode(NODE), owner=AGENT),
    put(LEADER_PATH, encode(LeaderRecord("a", "a:1", 1)), owner=LEADER),
    put(EPOCH_PATH, b"1"),
]
SECOND = replace(ORDER, instance_id="1-1", address="n:2")


def verdict(*events: Event) -> Verdict:
    return judge([*BEGIN, *events])


def test_what_may_be_is_not_held_against_it() -> None:
    found = verdict(
        order(ORDER),
        order(SECOND),
        Write(0, 2.0, LEADER, SECOND.path, None, fence=(EPOCH_PATH, 0)),
        order(replace(SECOND, instance_id="1-2")),
        put(EPOCH_PATH, b"2", 1),
        order(replace(ORDER, epoch=2), 1),
    )
    assert found.violations == []
    assert (found.fenced_writes, [epoch for _, epoch in found.elections]) == (5, [1, 2])
    assert [o.instance_id for _, o in found.revoked] == ["1-1"]


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([replace(order(ORDER), fence=None)], "fenced by None"),
        ([put(EPOCH_PATH, b"2", 1), order(ORDER)], "fenced by"),
        ([put(EPOCH_PATH, b"2", 1), order(ORDER, 1)], "ordered in epoch 2 by 1"),
        ([put(EPOCH_PATH, b"3", 1)], "epoch 3 came after epoch 1"),
        ([order(ORDER), order(replace(ORDER, instance_id="1-1"))], "share n:1"),
        (
            [order(replace(ORDER, devices=(0, 1))), order(replace(SECOND, devices=(1,)))],
            "share devices {1}",
        ),
        (
            [
                put(FUNCTION.path, encode(replace(FUNCTION, scaling=Scaling(maximum=9))), 1),
                *(order(replace(ORDER, instance_id=f"1-{n}", address=f"n:{n}")) for n in range(3)),
            ],
            "ordered to run 3 instances",
        ),
        (
            [order(replace(ORDER, instance_id=f"1-{n}", address=f"n:{n}")) for n in range(3)],
            "f.ns was ordered 3 times",
        ),
        (
            [put(LEADER_PATH, encode(LeaderRecord("b", "b:1", 1)), 1)],
            "epoch 1 was led by a and by b",
        ),
    ],
)
def test_what_must_not_be_is_said(events: list[Event], said: str) -> None:
    assert any(said in sentence for sentence in verdict(*events).violations)


def test_a_session_that_ends_takes_its_entries_along() -> None:
    found = verdict(SessionEnd(0, 2.0, AGENT))
    assert NODE.path not in found.values
    assert LEADER_PATH in found.values
