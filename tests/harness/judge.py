"""Judges the history of a cluster: replays what ZooKeeper committed and says what must not be.

- Every write of assignments, prefetches, failures and requests carried out is fenced by the epoch
  that holds at that moment, and no order carries another epoch. So no write of a leader that was
  overtaken ever succeeded.
- Epochs grow by one, and each belongs to one leader.
- No address and no device of a node is in two live assignments, and no node has more of them than
  it takes.
- A function has at most its maximum of live assignments of one generation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from harness.zookeeper_log import Event, SessionEnd, Write
from stoker.placement.main import EPOCH_PATH
from stoker.placement.records import Assignment, FunctionRecord, LeaderRecord, NodeRecord, decode
from stoker.placement.view import LEADER_PATH


@dataclass
class Verdict:
    """`violations` are sentences. Times are those of ZooKeeper's leader, in seconds since 1970."""

    violations: list[str] = field(default_factory=list)
    fenced_writes: int = 0
    elections: list[tuple[float, int]] = field(default_factory=list)
    ordered: list[tuple[float, Assignment]] = field(default_factory=list)
    revoked: list[tuple[float, Assignment]] = field(default_factory=list)
    registered: list[tuple[float, str]] = field(default_factory=list)
    values: dict[str, bytes] = field(default_factory=dict)


def judge(events: Iterable[Event]) -> Verdict:
    """What became of the store by these events, from the first on."""
    replay = _Replay()
    for event in events:
        if isinstance(event, SessionEnd):
            for path in [p for p, owner in replay.owners.items() if owner == event.session]:
                replay.remove(path, event.at)
        else:
            replay.take(event)
    replay.verdict.values = replay.values
    return replay.verdict


class _Replay:
    def __init__(self) -> None:
        self.verdict = Verdict()
        self.values: dict[str, bytes] = {}
        self.versions: dict[str, int] = {}
        self.owners: dict[str, int] = {}
        self.live: dict[str, Assignment] = {}
        self.leaders: dict[int, str] = {}
        self.epoch = 0

    def take(self, write: Write) -> None:
        table = "/" + write.path.split("/")[1]
        if table in ("/assignments", "/failures", "/requests", "/prefetches"):
            self._check_fence(write)
        if write.value is None:
            self.remove(write.path, write.at)
            return
        self.values[write.path] = write.value
        self.versions[write.path] = write.version
        if write.created:
            self.owners[write.path] = write.owner
        if write.path == EPOCH_PATH:
            self._take_epoch(write.at, int(write.value))
        elif write.path == LEADER_PATH:
            self._take_leader(decode(LeaderRecord, write.value))
        elif table == "/assignments":
            self._take_order(write.at, write.path, decode(Assignment, write.value))
        elif table == "/nodes" and write.created:
            self.verdict.registered.append((write.at, write.path.rpartition("/")[2]))

    def remove(self, path: str, at: float) -> None:
        self.values.pop(path, None)
        self.owners.pop(path, None)
        self.versions.pop(path, None)
        order = self.live.pop(path, None)
        if order is not None:
            self.verdict.revoked.append((at, order))

    def _say(self, sentence: str) -> None:
        self.verdict.violations.append(sentence)

    def _check_fence(self, write: Write) -> None:
        holds = (EPOCH_PATH, self.versions.get(EPOCH_PATH, -1))
        if write.fence != holds:
            self._say(
                f"zxid {write.zxid:#x}: {write.path} was fenced by {write.fence}, not {holds}"
            )
        self.verdict.fenced_writes += 1

    def _take_epoch(self, at: float, epoch: int) -> None:
        if epoch != self.epoch + 1:
            self._say(f"epoch {epoch} came after epoch {self.epoch}")
        self.epoch = epoch
        self.verdict.elections.append((at, epoch))

    def _take_leader(self, leader: LeaderRecord) -> None:
        # The record names the epoch that its candidate writes next, if nobody is faster.
        known = self.leaders.setdefault(leader.epoch, leader.leader_id)
        if leader.epoch <= self.epoch and known != leader.leader_id:
            self._say(f"epoch {leader.epoch} was led by {known} and by {leader.leader_id}")

    def _take_order(self, at: float, path: str, order: Assignment) -> None:
        if order.epoch != self.epoch:
            self._say(f"{order.instance_id} was ordered in epoch {self.epoch} by {order.epoch}")
        if path not in self.live:
            self.verdict.ordered.append((at, order))
        others = [o for p, o in self.live.items() if p != path]
        self.live[path] = order
        for other in others:
            if (other.node_id, other.address) == (order.node_id, order.address):
                self._say(f"{order.instance_id} and {other.instance_id} share {order.address}")
            shared = set(other.devices) & set(order.devices)
            if other.node_id == order.node_id and shared:
                self._say(f"{order.instance_id} and {other.instance_id} share devices {shared}")
        on_node = Counter(o.node_id for o in self.live.values())[order.node_id]
        node = self.values.get(f"/nodes/{order.node_id}")
        if node and on_node > decode(NodeRecord, node).instances_maximum:
            self._say(f"{order.node_id} was ordered to run {on_node} instances")
        name, _, namespace = order.function.rpartition(".")
        function = self.values.get(f"/functions/{namespace}/{name}")
        same = [o for o in self.live.values() if o.function == order.function]
        of_function = sum(o.generation == order.generation for o in same)
        if function and of_function > decode(FunctionRecord, function).scaling.maximum:
            self._say(f"{order.function} was ordered {of_function} times")
