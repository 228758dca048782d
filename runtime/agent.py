"""The node agent: carries out what the leader assigned to this node, and says what it has.

Everything here runs in one event loop; the store's threads only hand changes over.
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import structlog

from stoker.placement.errors import BadRequest, Fenced, StartFailed, StokerError
from stoker.placement.names import split_function_name
from stoker.placement.records import (
    Assignment,
    CheckpointRef,
    FunctionRecord,
    InstanceRecord,
    NodeRecord,
    Prefetch,
    ResidentRecord,
    decode,
    encode,
)
from stoker.placement.store import Change, Store, StoreState
from stoker.runtime.announcements import Announcements
from stoker.runtime.instance import Instance
from stoker.runtime.node import Node
from stoker.runtime.spare_sockets import SpareSockets

# On a full node too: who takes the place of another is told an address while that one still ends.
SPARE_SOCKETS = 4
# Residents and bandwidths change with every chunk; they are told at most this often.
REFRESH_SECONDS = 0.25
SHUTDOWN_DRAIN_SECONDS = 10.0
# A node that the store lost sight of loses its assignments; what runs there may come to its end.
OUTAGE_DRAIN_SECONDS_MAXIMUM = 600.0
RECOVERY_SECONDS = 10.0
SHUTDOWN_SECONDS_MAXIMUM = 18.0
# What a deleted function wrote stays for who looks why; longer than its last instance drains.
DELETED_LOGS_SECONDS = 300.0

_log = structlog.get_logger()
_R = TypeVar("_R")


class Residency(Protocol):
    @property
    def digest(self) -> str: ...
    @property
    def dram_bytes(self) -> int: ...
    @property
    def ssd_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Tiers:
    """What the checkpoint cache says of itself; bandwidths are (remote, SSD, peers) in bytes/s.

    `read_ahead` is told what to bring before anybody calls it, and returns at once.
    """

    residents: Callable[[], Sequence[Residency]]
    bandwidths: Callable[[], tuple[float, float, float]]
    read_ahead: Callable[[Sequence[CheckpointRef]], None]


@dataclass(slots=True)
class _Running:
    instance: Instance
    task: asyncio.Task[None]
    devices: frozenset[int]
    revoked: bool = False


class Agent:
    """`run` works until `stop` is set. `identity` is the node record without what changes."""

    def __init__(
        self,
        identity: NodeRecord,
        store: Store,
        spares: SpareSockets,
        announcements: Announcements,
        tiers: Tiers,
        zygote_ready: Callable[[], bool],
    ) -> None:
        self._identity = identity
        self._store = store
        self._spares = spares
        self._announcements = announcements
        self._tiers = tiers
        self._zygote_ready = zygote_ready
        self._init_seconds = 0.0
        self._functions: dict[str, FunctionRecord] = {}
        self._running: dict[str, _Running] = {}
        self._epoch = 0
        self._store_state = StoreState.CONNECTED
        self._recovered_at = -math.inf
        self._accepting = False
        self._refresh: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._node: Node | None = None

    @property
    def live_count(self) -> int:
        return len(self._live())

    def _live(self) -> list[_Running]:
        return [running for running in self._running.values() if not running.task.done()]

    def health(self) -> dict[str, object]:
        return {"zygote_ready": self._zygote_ready(), "instances": self.live_count}

    def note_init_seconds(self, init_seconds: float) -> None:
        self._init_seconds = init_seconds
        self.announce()

    def note_change(self) -> None:
        """Residents or bandwidths may have changed; may be called from any thread."""
        self._hand_over(self._schedule_refresh)

    async def run(self, node: Node, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then drain every instance; takes at most 18 s to end."""
        self._node = node
        self._accepting = True
        self._spares.fill(SPARE_SOCKETS)
        writing = asyncio.ensure_future(self._announcements.run())
        self._announce_all()
        stop_watches = await asyncio.to_thread(self._watch)
        self._forget_logs(node.logs.functions())
        try:
            await stop.wait()
        finally:
            self._accepting = False
            for stop_watch in stop_watches:
                await asyncio.to_thread(stop_watch)
            self._spares.close()
            self._announcements.remove(self._identity.path)
            await self._drain()
            await node.parking.close()
            writing.cancel()

    def announce(self) -> None:
        """Write the node record, if it reads differently now."""
        if not self._accepting:
            return
        remote, ssd, peer = self._tiers.bandwidths()
        record = replace(
            self._identity,
            spare_addresses=self._spares.addresses,
            remote_bandwidth=round(remote),
            ssd_bandwidth=round(ssd),
            peer_bandwidth=round(peer),
            init_seconds=round(self._init_seconds, 3),
            zygote_ready=self._zygote_ready(),
            parked=self._node.parking.ready if self._node else (),
        )
        self._announcements.put(record.path, encode(record))

    def _watch(self) -> list[Callable[[], None]]:
        node_id = self._identity.node_id
        self._store.on_state(lambda state: self._hand_over(self._note_state, state))
        return [
            self._store.watch(prefix, lambda change: self._hand_over(self._note, change))
            for prefix in (
                "/functions",
                "/nodes",
                f"/residents/{node_id}",
                f"/instances/{node_id}",
                f"/assignments/{node_id}",
                f"/prefetches/{node_id}",
            )
        ]

    def _hand_over(self, function: Callable[..., None], *arguments: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def _note_state(self, state: StoreState) -> None:
        before, self._store_state = self._store_state, state
        if state is StoreState.LOST:
            self._announcements.forget()
        elif state is StoreState.CONNECTED and before is not state:
            self._recovered_at = self._loop.time()
            self._announcements.hurry()

    def _note(self, change: Change) -> None:
        kind = change.path.split("/", 2)[1]
        if kind == "functions":
            self._note_function(change)
        elif kind == "assignments" and change.entry is None:
            self._revoke(change.path.rpartition("/")[2])
        elif kind == "assignments":
            order = _decoded(Assignment, change)
            if order is not None and order.path == change.path and self._accepting:
                self._obey(order)
        elif kind == "prefetches":
            self._note_prefetch(change)
        elif change.entry is None:
            self._announcements.vanished(change.path)

    def _note_prefetch(self, change: Change) -> None:
        order = None if change.entry is None else _decoded(Prefetch, change)
        if order is None:
            self._tiers.read_ahead(())
        elif order.path == change.path and order.epoch >= self._epoch and self._accepting:
            self._tiers.read_ahead(order.checkpoints)

    def _note_function(self, change: Change) -> None:
        record = None if change.entry is None else _decoded(FunctionRecord, change)
        assert self._node is not None
        self._node.parking.changed(change.path, record)
        if record is None:
            if (gone := self._functions.pop(change.path, None)) is not None:
                self._loop.call_later(DELETED_LOGS_SECONDS, self._forget_logs, {gone.key})
        else:
            self._functions[change.path] = record

    def _forget_logs(self, keys: Collection[str]) -> None:
        """Of those of the functions that do not exist."""
        assert self._node is not None
        for key in {*keys} - {function.key for function in self._functions.values()}:
            self._node.logs.remove(key)

    def _obey(self, order: Assignment) -> None:
        if order.instance_id in self._running:
            return
        path = _starting(order).path
        if path in self._announcements.wanted(path):  # refused before
            return
        if order.epoch < self._epoch:
            self._refuse(
                order,
                Fenced(
                    f"Expected an assignment of epoch {self._epoch} or later, "
                    f"found epoch {order.epoch}.",
                    "Place the function again.",
                ),
            )
            return
        self._epoch = order.epoch
        listening = self._spares.claim(order.address)
        if listening is None:
            self._refuse(
                order,
                StartFailed(
                    f"Expected the agent of {order.node_id} to hold a socket at {order.address}, "
                    "found that the agent was restarted.",
                    "Place the function again.",
                ),
            )
            return
        assert self._node is not None
        devices = [name for n, name in enumerate(self._node.devices) if n in order.devices]
        if len(devices) < len(order.devices):
            listening.close()
            self._refuse(
                order,
                StartFailed(
                    f"Expected device {max(order.devices)} on node {order.node_id}, found "
                    f"{len(self._node.devices)} devices.",
                    "Place the function again.",
                ),
            )
            return
        held = [r.task for r in self._live() if not r.devices.isdisjoint(order.devices)]
        find_function = functools.partial(self._function_of, order)
        instance = Instance(order, listening, find_function, self._node, devices, held)
        task = asyncio.ensure_future(instance.run())
        self._running[order.instance_id] = _Running(instance, task, frozenset(order.devices))
        task.add_done_callback(lambda _: self._ended(order.instance_id))
        self._refill()

    def _refuse(self, order: Assignment, error: StokerError) -> None:
        _log.warning("assignment_refused", instance_id=order.instance_id, cause=error.cause)
        record = replace(_starting(order), state="failed", failure=error.to_wire())
        self._announcements.put(record.path, encode(record))

    def _revoke(self, instance_id: str) -> None:
        running = self._running.get(instance_id)
        if running is None:
            self._announcements.remove(f"/instances/{self._identity.node_id}/{instance_id}")
            return
        running.revoked = True
        running.instance.stop(OUTAGE_DRAIN_SECONDS_MAXIMUM if self._was_out_of_reach else None)
        if running.task.done():
            self._ended(instance_id)

    @property
    def _was_out_of_reach(self) -> bool:
        """Whether an instance may have been given up with the node, rather than by intent."""
        recovering = self._loop.time() - self._recovered_at < RECOVERY_SECONDS
        return recovering or self._store_state is not StoreState.CONNECTED

    def _ended(self, instance_id: str) -> None:
        """The process is gone; its record stays until the assignment is gone as well."""
        running = self._running.get(instance_id)
        if running is not None and (running.revoked or not self._accepting):
            del self._running[instance_id]
            self._announcements.remove(running.instance.record.path)
        self._refill()

    def _refill(self) -> None:
        if not self._accepting:
            return
        try:
            self._spares.fill(SPARE_SOCKETS)
        except StartFailed as error:
            _log.error("spare_socket_failed", cause=error.cause)
        self.announce()

    async def _function_of(self, order: Assignment) -> FunctionRecord:
        """The function as it was when it was assigned; the store is asked if the watch lags."""
        name, namespace = split_function_name(order.function)
        path = f"/functions/{namespace}/{name}"
        record = self._functions.get(path)
        if record is None or record.generation < order.generation:
            entry = await asyncio.to_thread(self._store.get, path)
            record = None if entry is None else decode(FunctionRecord, entry.value)
        if record is None or record.generation != order.generation:
            found = "none" if record is None else f"generation {record.generation}"
            raise StartFailed(
                f"Expected {order.function} of generation {order.generation}, found {found}.",
                "Place the function again.",
            )
        return record

    def _schedule_refresh(self) -> None:
        if self._refresh is None and self._accepting:
            self._refresh = self._loop.call_later(REFRESH_SECONDS, self._announce_all)

    def _announce_all(self) -> None:
        self._refresh = None
        if not self._accepting:
            return
        self.announce()
        node_id = self._identity.node_id
        records = [
            ResidentRecord(node_id, resident.digest, resident.dram_bytes, resident.ssd_bytes)
            for resident in self._tiers.residents()
        ]
        for path in self._announcements.wanted(f"/residents/{node_id}/"):
            if path not in {record.path for record in records}:
                self._announcements.remove(path)
        for record in records:
            self._announcements.put(record.path, encode(record))

    async def _drain(self) -> None:
        tasks = {running.task for running in self._running.values()}
        for running in self._running.values():
            running.instance.stop(SHUTDOWN_DRAIN_SECONDS)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=SHUTDOWN_SECONDS_MAXIMUM)
            for task in late:
                task.cancel()


def _starting(order: Assignment) -> InstanceRecord:
    return InstanceRecord(
        instance_id=order.instance_id,
        function=order.function,
        generation=order.generation,
        node_id=order.node_id,
        address=order.address,
        state="starting",
        epoch=order.epoch,
        started_at=order.created_at,
    )


def _decoded(cls: type[_R], change: Change) -> _R | None:
    assert change.entry is not None
    try:
        return decode(cls, change.entry.value)
    except BadRequest as error:
        _log.warning("record_unreadable", path=change.path, cause=error.cause)
        return None
