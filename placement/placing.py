"""Where a start goes: the named policies, as data for the one code path in `choice`.

random         any node with room
availability   the node with the most room
locality       the node nearest to the weights, also if its place is still taken
shepherd       the soonest start by q + n / b; running work is preempted for it
serverlessllm  the soonest start by q + n / b; running work is migrated for it
stoker         the soonest start by the overlapped estimate, what it costs others included
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Order = Literal["random", "room", "tier", "seconds"]


@dataclass(frozen=True, slots=True)
class Placing:
    """One policy. Idle instances give way under each; `waits`, `migrates` and `preempts` say what
    else makes room.

    `overlapped` chooses the estimate. With `careful`, no promise made for another start is broken,
    peers send weights, instances of one function spread over zones, an existing instance that
    is free sooner is waited for, and priorities count: only a lower one is preempted, and idle
    instances of a lower one go first. With `prefetches`, idle disks read ahead.
    """

    name: str
    order: Order
    overlapped: bool = False
    waits: bool = False
    migrates: bool = False
    preempts: bool = False
    careful: bool = False
    prefetches: bool = False


STOKER = Placing(
    "stoker",
    "seconds",
    overlapped=True,
    waits=True,
    migrates=True,
    preempts=True,
    careful=True,
    prefetches=True,
)
PLACINGS: Mapping[str, Placing] = {
    placing.name: placing
    for placing in (
        Placing("random", "random"),
        Placing("availability", "room"),
        Placing("locality", "tier", waits=True),
        Placing("shepherd", "seconds", preempts=True),
        Placing("serverlessllm", "seconds", migrates=True),
        STOKER,
    )
}


@dataclass(frozen=True, slots=True)
class Abilities:
    """What the nodes of the cluster can carry out beside starts and stops of idle instances.

    To `drain` is to take no more requests and let those that run end.
    """

    migrate: bool = False
    preempt: bool = False
    peers: bool = True
    drain: bool = False


# A running stream cannot be moved or put aside yet.
PRESENT_ABILITIES = Abilities(drain=True)
EVERY_ABILITY = Abilities(migrate=True, preempt=True)
