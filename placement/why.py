"""Why an instance was started where it was: what is told of a decision, and the same in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# How many rejected nodes an answer names; it counts the others.
REJECTED_MAXIMUM = 32


@dataclass(frozen=True, slots=True)
class WhyRequest:
    """POST /why: `name` is the id of a call (X-Call-Id) or of an instance."""

    name: str


@dataclass(frozen=True, slots=True)
class StageSeconds:
    """One stage of a start; `actual` is None as long as it is not known."""

    stage: str
    predicted: float
    actual: float | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """A node that was not chosen, what was predicted for it, and why not."""

    node_id: str
    seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class ErrorShare:
    """How far predictions were off, as shares of what starts took."""

    source: str
    starts: int
    median: float
    p95: float


@dataclass(frozen=True, slots=True)
class WhyAnswer:
    """What was decided, `decided_at` in seconds since the epoch.

    `kind` says where the weights came from, or how the place was made; it is empty where no node
    could take it. `actual_seconds` is None until the instance serves. `rejected_count` counts all
    that were rejected.
    """

    decided_at: float
    function: str
    policy: str
    kind: str
    node_id: str
    instance_id: str
    predicted_seconds: float
    actual_seconds: float | None
    stages: tuple[StageSeconds, ...]
    victims: tuple[str, ...]
    peer: str
    rejected: tuple[Rejected, ...]
    rejected_count: int
    errors: tuple[ErrorShare, ...] = ()


_FROM = {
    "parked": "a process stood by for it there, and its weights were in memory",
    "dram": "its weights were in memory there",
    "ssd": "its weights were on the disk there",
    "peer": "its weights came from a peer",
    "remote": "its weights came from the store",
    "wait": "its place became free there",
    "migrate": "what ran there could go on elsewhere",
    "preempt": "what ran there had a lower priority",
    "drain": "what is in use there had a lower priority and takes no more calls",
    "warm": "an instance was ready there",
}


def sentences(answer: WhyAnswer) -> Iterator[str]:
    """The answer in plain words, a line each."""
    function, policy = answer.function, answer.policy
    if not answer.kind:
        yield f"{function} could not be started: no node had room (policy {policy})."
    else:
        because = _FROM.get(answer.kind, answer.kind)
        peer = f" {answer.peer}" if answer.peer else ""
        yield (
            f"{function} went to node {answer.node_id} as instance {answer.instance_id}, "
            f"because it would start soonest there: {because}{peer} (policy {policy})."
        )
        yield _verdict(answer)
    for victim in answer.victims:
        yield f"  to make room: {victim}"
    for stage in answer.stages:
        actual = "" if stage.actual is None else f", took {stage.actual:.3f} s"
        yield f"  {stage.stage:8} predicted {stage.predicted:.3f} s{actual}"
    if answer.rejected_count:
        yield f"Rejected {answer.rejected_count} of the other nodes:"
    for node in answer.rejected:
        yield f"  {node.node_id}: {node.seconds:.3f} s, {node.reason}"
    left = answer.rejected_count - len(answer.rejected)
    if left > 0:
        yield f"  and {left} more"
    for error in answer.errors:
        yield (
            f"Of {error.starts} starts from {error.source}, half were predicted within "
            f"{error.median:.1%} of what they took, 95 % within {error.p95:.1%}."
        )


def _verdict(answer: WhyAnswer) -> str:
    predicted = f"Predicted {answer.predicted_seconds:.3f} s until it serves"
    if answer.actual_seconds is None:
        return f"{predicted}; it has not served yet."
    off = abs(answer.predicted_seconds - answer.actual_seconds) / max(answer.actual_seconds, 1e-9)
    return f"{predicted}, took {answer.actual_seconds:.3f} s: off by {off:.1%}."
