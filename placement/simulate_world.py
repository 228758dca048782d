"""The nodes of a simulated cluster: links that queue, tiers that fill, devices. Virtual time.

A link serves loads first come, first served; the stages of one load overlap, so a load is done when
the last of its links is. Host memory holds what was loaded until others need the room.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from stoker.placement.records import CheckpointRef, NodeRecord, ResidentRecord

Tier = Literal["none", "dram", "ssd", "peer", "remote"]


class Link:
    """`free_at` is when all that was queued so far has passed."""

    __slots__ = ("bandwidth", "busy_seconds", "free_at")

    def __init__(self, bandwidth: float) -> None:
        self.bandwidth = bandwidth
        self.free_at = 0.0
        self.busy_seconds = 0.0

    def pass_bytes(self, byte_count: float, now: float) -> float:
        """Queue so many bytes; returns when the last of them has passed."""
        seconds = byte_count / self.bandwidth
        self.busy_seconds += seconds
        self.free_at = max(now, self.free_at) + seconds
        return self.free_at


class Pool:
    """A node's host memory for weights. What no instance uses goes, the longest unused first.

    Invariant: `used_bytes` is the sum of what is held, at most the capacity.
    """

    __slots__ = ("_held", "_users", "capacity_bytes", "used_bytes")

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self._held: OrderedDict[str, int] = OrderedDict()
        self._users: dict[str, int] = {}

    def __contains__(self, digest: str) -> bool:
        return digest in self._held

    @property
    def free_bytes(self) -> int:
        return self.capacity_bytes - self.used_bytes

    def bytes_of(self, digest: str) -> int:
        return self._held.get(digest, 0)

    def use(self, digest: str) -> None:
        self._users[digest] = self._users.get(digest, 0) + 1
        if digest in self._held:
            self._held.move_to_end(digest)

    def leave(self, digest: str) -> None:
        left = self._users.get(digest, 0) - 1
        if left > 0:
            self._users[digest] = left
        else:
            self._users.pop(digest, None)

    def add(self, digest: str, byte_count: int) -> list[str]:
        """Hold a checkpoint, if it fits beside what is in use; returns whose place it took."""
        went: list[str] = []
        if digest in self._held:
            return went
        lacking = self.used_bytes + byte_count - self.capacity_bytes
        if lacking > 0:
            for other, size in self._held.items():
                if other not in self._users:
                    went.append(other)
                    lacking -= size
                    if lacking <= 0:
                        break
            if lacking > 0:
                return []
        for other in went:
            self.used_bytes -= self._held.pop(other)
        self._held[digest] = byte_count
        self.used_bytes += byte_count
        return went

    def clear(self) -> list[str]:
        """All is lost."""
        went = list(self._held)
        self._held.clear()
        self._users.clear()
        self.used_bytes = 0
        return went


@dataclass(frozen=True, slots=True)
class Fetch:
    """A load into host memory: when its first bytes are there, when all are, and from where."""

    begins_at: float
    ends_at: float
    tier: Tier
    evicted: tuple[str, ...] = ()


class World:
    """All nodes: what they hold, and how long their loads take."""

    def __init__(self, nodes: Iterable[NodeRecord]) -> None:
        self.nodes = {node.node_id: SimulatedNode(node) for node in nodes}

    def fetch(
        self, node: SimulatedNode, checkpoint: CheckpointRef, now: float, source: str = ""
    ) -> Fetch:
        """Bring a checkpoint into the node's memory from the nearest tier.

        `source` is the node that sends it, where the planner expects a peer to.
        """
        digest, size = checkpoint.digest, checkpoint.weight_bytes
        ahead = node.ahead.read.pop(digest, 0)
        coming = node.coming.get(digest)
        if coming is not None and coming.ends_at > now:
            return coming  # It is on its way for another instance.
        if digest in node.pool:
            return Fetch(now, now, "dram")
        if digest in node.ssd:
            begins_at = now if ahead else max(now, node.ssd_link.free_at)
            ends_at = node.ssd_link.pass_bytes(size - ahead, now)
            tier: Tier = "ssd"
        else:
            begins_at = max(now, node.net_in.free_at)
            ends_at = node.net_in.pass_bytes(size - ahead, now)
            peer = self.nodes.get(source)
            if peer is not None and peer.up and peer.holds(digest):
                tier = "peer"
                ends_at = max(ends_at, peer.net_out.pass_bytes(size - ahead, now))
            else:
                tier = "remote"
            node.keep_on_ssd(digest, size)
        evicted = tuple(node.pool.add(digest, size))
        for other in evicted:
            node.coming.pop(other, None)
        found = node.coming[digest] = Fetch(begins_at, ends_at, tier, evicted)
        return found


@dataclass(slots=True)
class Ahead:
    """What came of what nobody called yet: bytes `read` by digest, not all of them yet.

    `digest` comes just now, over `link`, with `size` bytes in all; each beginning has a `number`.
    Nothing comes while loads take the link, until `waits_until`.
    """

    read: dict[str, int] = field(default_factory=dict)
    digest: str = ""
    size: int = 0
    link: Link | None = None
    since: float = 0.0
    number: int = 0
    waits_until: float = 0.0


class SimulatedNode:
    """One node. `coming` holds, by digest, the last load of what is in memory or on its way."""

    __slots__ = (
        "ahead",
        "coming",
        "device_links",
        "net_in",
        "net_out",
        "pool",
        "record",
        "ssd",
        "ssd_link",
        "ssd_used_bytes",
        "up",
    )

    def __init__(self, record: NodeRecord) -> None:
        self.record = record
        self.up = True
        self.ssd: dict[str, int] = {}
        self.ssd_used_bytes = 0
        self.pool = Pool(record.dram_bytes)
        self.coming: dict[str, Fetch] = {}
        self.ahead = Ahead()
        self.ssd_link = Link(record.ssd_bandwidth)
        self.net_in = Link(record.remote_bandwidth)
        self.net_out = Link(record.peer_bandwidth or record.remote_bandwidth)
        self.device_links = [Link(record.device_bandwidth) for _ in range(record.device_count)]

    def holds(self, digest: str) -> bool:
        return digest in self.pool or digest in self.ssd

    def keep_on_ssd(self, digest: str, byte_count: int) -> bool:
        """Put a checkpoint onto the SSD, if there is room."""
        if digest in self.ssd or self.ssd_used_bytes + byte_count > self.record.ssd_bytes:
            return False
        self.ssd[digest] = byte_count
        self.ssd_used_bytes += byte_count
        return True

    def begin_ahead(self, digest: str, size: int, link: Link, now: float) -> float:
        """Bring it; returns when all of it would be there."""
        ahead = self.ahead
        ahead.digest, ahead.size, ahead.link, ahead.since = digest, size, link, now
        ahead.number += 1
        return now + (size - ahead.read.setdefault(digest, 0)) / link.bandwidth

    def stop_ahead(self, now: float) -> None:
        ahead = self.ahead
        ahead.read[ahead.digest] = self._come(ahead.digest, now)
        ahead.digest = ""

    def _come(self, digest: str, now: float) -> int:
        """Bytes of it that came before anybody called it."""
        ahead = self.ahead
        read = ahead.read.get(digest, 0)
        if digest == ahead.digest and ahead.link is not None:
            read = min(ahead.size, read + int((now - ahead.since) * ahead.link.bandwidth))
        return read

    def copy_to_devices(
        self, devices: tuple[int, ...], byte_count: int, fetched: Fetch, room_at: float
    ) -> float:
        """When the devices hold it, an equal part each, where its place is free at `room_at`."""
        done = max(fetched.ends_at, room_at)
        begin = max(fetched.begins_at, room_at)
        for device in devices:
            link = self.device_links[device]
            done = max(done, link.pass_bytes(byte_count / len(devices), begin))
        return done

    def resident(self, digest: str, now: float = 0.0) -> ResidentRecord:
        """What the node would announce of the checkpoint."""
        held = self.pool.bytes_of(digest) or self._come(digest, now)
        return ResidentRecord(self.record.node_id, digest, held, self.ssd.get(digest, 0))

    def fail(self) -> list[str]:
        """The node goes down: what was in memory is lost, and what its links carried."""
        self.up = False
        self.coming.clear()
        for link in (self.ssd_link, self.net_in, self.net_out, *self.device_links):
            link.free_at = 0.0
        return self.pool.clear()
