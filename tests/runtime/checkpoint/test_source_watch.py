from __future__ import annotations

import socket
import time
from contextlib import ExitStack

import pytest

from harness.waiting import eventually
from stoker.runtime.checkpoint.source_watch import Transfer, Watch, falls_behind

MIB = 1 << 20
FOREVER = float("inf")


@pytest.mark.parametrize(
    ("elapsed_seconds", "received_bytes", "others", "behind"),
    [
        (0.2, 0, [100e6, 100e6], False),  # the first byte may take its time
        (0.3, 0, [100e6, 100e6], True),
        (0.3, 8 * MIB, [100e6, 100e6], False),
        (0.3, 10 * MIB, [200e6, 200e6, 1.0], False),  # a fifth of most is not hopeless
        (0.4, 4_000, [10e6, 10e6], False),  # the others will need 1.7 s
        (1.0, 10_000, [10e6, 10e6], True),
        (9.0, 90_000, [10e3, 11e3], False),  # all are slow: another connection would be too
        (9.0, 0, [0.0, 0.0], False),
        (2.9, 0, [], False),
        (3.1, 31_000, [], True),
        (3.1, 300_000, [], False),
    ],
)
def test_only_what_is_far_behind_its_time_is_given_up(
    elapsed_seconds: float, received_bytes: int, others: list[float], behind: bool
) -> None:
    assert falls_behind(elapsed_seconds, received_bytes, 16 * MIB, others) is behind


def test_a_transfer_past_its_deadline_is_ended_even_when_it_is_the_last_try() -> None:
    near, far = socket.socketpair()
    with near, far:
        transfer = Transfer(near, MIB, time.monotonic() + 0.1, expendable=False)
        with Watch().watched(transfer):
            assert near.recv(1) == b""

    assert "in time" in transfer.given_up


def test_a_last_try_is_left_to_finish_however_slow() -> None:
    near, far = socket.socketpair()
    other, end = socket.socketpair()
    watch = Watch()
    with near, far, other, end:
        slow = Transfer(near, MIB, FOREVER, expendable=False)
        also_slow = Transfer(other, MIB, FOREVER, expendable=True)
        fast = [Transfer(other, MIB, FOREVER, expendable=False) for _ in range(2)]
        for transfer in fast:
            transfer.received_bytes = 1 << 40
        with ExitStack() as stack:
            for transfer in (slow, also_slow, *fast):
                stack.enter_context(watch.watched(transfer))
            eventually(lambda: also_slow.given_up)

        assert slow.given_up == ""
        far.sendall(b"x")
        assert near.recv(1) == b"x"


def test_a_connection_is_never_shut_after_its_transfer_has_ended() -> None:
    near, far = socket.socketpair()
    watch = Watch()
    with near, far:
        late = Transfer(near, MIB, time.monotonic(), expendable=True)
        with watch.watched(late):
            pass
        other = Transfer(far, MIB, FOREVER, expendable=False)
        with watch.watched(other):
            time.sleep(0.2)  # several looks

        assert late.given_up == ""
        far.sendall(b"x")
        assert near.recv(1) == b"x"
