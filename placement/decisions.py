"""The last decisions, what became of them, and what they teach. Bounded.

An instance that serves says what its stages took: that goes beside the prediction, into the share
by which predictions are off, and into what is learnt for the next.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stoker.placement.choice import Candidate, Decision
from stoker.placement.estimate import CONTROL_SECONDS
from stoker.placement.fleet import Fleet
from stoker.placement.learnt import PARKED, Path
from stoker.placement.records import Assignment, InstanceRecord
from stoker.placement.why import REJECTED_MAXIMUM, ErrorShare, Rejected, StageSeconds, WhyAnswer

# Each decision remembers every node: so many numbers, of all decisions together, are kept.
NODES_REMEMBERED = 400_000
DECISIONS_MAXIMUM = 4096
# Of the calls that wait for one start, so many are told why.
NAMES_MAXIMUM = 64
# Of each source, the errors of so many starts.
ERRORS_MAXIMUM = 256


@dataclass(slots=True)
class _Entry:
    decision: Decision
    assignment: Assignment | None
    names: list[str]
    served: InstanceRecord | None = None


class Decisions:
    """Not thread-safe: its owner's lock guards it."""

    def __init__(self) -> None:
        self._entries: deque[_Entry] = deque()
        self._nodes = 0
        self._by_name: dict[str, _Entry] = {}
        self._errors: dict[str, deque[float]] = {}

    def add(
        self, decision: Decision, assignment: Assignment | None, calls: Iterable[str] = ()
    ) -> None:
        """Remember a decision by what it started and by the calls that wait for it."""
        entry = _Entry(decision, assignment, [])
        self._entries.append(entry)
        self._nodes += len(decision.survey.node_ids)
        for name in (*([assignment.instance_id] if assignment else []), *calls):
            self._name(entry, name)
        while len(self._entries) > DECISIONS_MAXIMUM or (
            self._nodes > NODES_REMEMBERED and len(self._entries) > 1
        ):
            self._forget(self._entries.popleft())

    def name(self, instance_id: str, calls: Iterable[str]) -> None:
        """These calls wait for an instance that was decided before."""
        entry = self._by_name.get(instance_id)
        if entry is not None:
            for call in calls:
                self._name(entry, call)

    def served(self, instance: InstanceRecord, fleet: Fleet) -> None:
        """The instance serves: compare what its start took, and learn from it. Once for each."""
        entry = self._by_name.get(instance.instance_id)
        chosen = entry.decision.chosen if entry else None
        if entry is None or chosen is None or entry.served or instance.start_seconds <= 0.0:
            return
        entry.served = instance
        actual = CONTROL_SECONDS + instance.start_seconds
        errors = self._errors.setdefault(chosen.stages.source, deque(maxlen=ERRORS_MAXIMUM))
        errors.append(abs(_until_serving(chosen) - actual) / actual)
        learn(fleet, chosen, instance)

    def errors(self) -> Mapping[str, ErrorShare]:
        """How far the last predictions were off, by where the weights came from."""
        return {
            source: ErrorShare(source, len(shares), _share(shares, 0.5), _share(shares, 0.95))
            for source, shares in sorted(self._errors.items())
        }

    def find(self, name: str) -> WhyAnswer | None:
        """What was decided for the call or the instance of this name, if it is remembered."""
        entry = self._by_name.get(name)
        if entry is None:
            return None
        decision, chosen = entry.decision, entry.decision.chosen
        node_id = chosen.node_id if chosen else ""
        rejected = list(decision.survey.rejected(node_id))
        served = entry.served
        return WhyAnswer(
            decided_at=decision.decided_at,
            function=decision.function,
            policy=decision.placing,
            kind=chosen.kind if chosen else "",
            node_id=node_id,
            instance_id=entry.assignment.instance_id if entry.assignment else "",
            predicted_seconds=_until_serving(chosen) if chosen else 0.0,
            actual_seconds=CONTROL_SECONDS + served.start_seconds if served else None,
            stages=_stages(chosen, served) if chosen else (),
            victims=tuple(_victims(chosen)) if chosen else (),
            peer=chosen.peer if chosen else "",
            rejected=tuple(Rejected(*found) for found in rejected[:REJECTED_MAXIMUM]),
            rejected_count=len(rejected),
            errors=tuple(self.errors().values()),
        )

    def _forget(self, entry: _Entry) -> None:
        self._nodes -= len(entry.decision.survey.node_ids)
        for name in entry.names:
            if self._by_name.get(name) is entry:
                del self._by_name[name]

    def _name(self, entry: _Entry, name: str) -> None:
        """The first decision for a call is the one that it waited for."""
        if len(entry.names) < NAMES_MAXIMUM and name not in self._by_name:
            entry.names.append(name)
            self._by_name[name] = entry


def learn(fleet: Fleet, chosen: Candidate, instance: InstanceRecord) -> None:
    """Teach the fleet what this start took."""
    stages, node = chosen.stages, fleet.nodes.get(instance.node_id)
    if node is None or stages.room > 0.0:
        return
    tier = 2 if stages.net_bytes else 1 if stages.ssd_bytes else 0
    names = instance.function, instance.node_id
    fleet.learnt.note_process(*names, PARKED if instance.parked else tier, instance.process_seconds)
    by_net = instance.fetch_seconds >= instance.ssd_seconds
    byte_count = stages.net_bytes if by_net else stages.ssd_bytes
    if not byte_count or max(instance.fetch_seconds, instance.ssd_seconds) <= 0.0:
        return
    if instance.start_seconds <= instance.process_seconds:
        return  # The process hid how long the load took.
    expected = stages.net if by_net else stages.ssd
    if stages.contended:
        if expected > 0.0:
            fleet.learnt.note_contended_load(node, instance.start_seconds / expected)
        return
    path: Path = "ssd" if not by_net else "peer" if chosen.peer else "store"
    fleet.learnt.note_load(node, path, byte_count, instance.start_seconds)


def _until_serving(chosen: Candidate) -> float:
    """The predicted seconds until it serves: all but the first prompt."""
    return chosen.seconds - chosen.stages.prefill


def _stages(chosen: Candidate, served: InstanceRecord | None) -> tuple[StageSeconds, ...]:
    stages = chosen.stages
    process = served.process_seconds if served else None
    found = [
        StageSeconds("room", stages.room),
        StageSeconds("process", stages.process, process),
        StageSeconds("fetch", stages.net, served.fetch_seconds if served else None),
        StageSeconds("load", stages.ssd, served.ssd_seconds if served else None),
        StageSeconds("device", stages.device),
    ]
    return tuple(stage for stage in found if stage.predicted or stage.actual)


def _victims(chosen: Candidate) -> Iterable[str]:
    for victim in chosen.victims:
        gone = victim.assignment
        where = f" to {victim.target}" if victim.target else ""
        yield f"{victim.how} {gone.instance_id} of {gone.function}{where}, {victim.seconds:.3f} s"


def _share(shares: Iterable[float], quantile: float) -> float:
    ordered = sorted(shares)
    if quantile == 0.5:
        return statistics.median(ordered)
    return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]
