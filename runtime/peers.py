"""Which other nodes hold a checkpoint, as the store says."""

from __future__ import annotations

import threading
from typing import TypeVar

import structlog

from stoker.placement.errors import BadRequest
from stoker.placement.records import NodeRecord, ResidentRecord, decode
from stoker.placement.store import Change, Store

PEERS_MAXIMUM = 4
_log = structlog.get_logger()
_R = TypeVar("_R")


class PeerDirectory:
    """Follows `/nodes` and `/residents`. Any thread may ask."""

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self._lock = threading.Lock()
        self._addresses: dict[str, str] = {}
        self._held: dict[str, dict[str, ResidentRecord]] = {}

    def watch(self, store: Store) -> None:
        """Follow the store until it is closed."""
        store.watch("/nodes", self._note_node)
        store.watch("/residents", self._note_resident)

    def holding(self, digest: str) -> tuple[str, ...]:
        """Addresses of at most PEERS_MAXIMUM nodes, those with most of it in memory first."""
        with self._lock:
            records = list(self._held.get(digest, {}).values())
            addresses = dict(self._addresses)
        records.sort(key=lambda record: (record.dram_bytes, record.ssd_bytes), reverse=True)
        found = (addresses.get(record.node_id) for record in records)
        return tuple(address for address in found if address is not None)[:PEERS_MAXIMUM]

    def _note_node(self, change: Change) -> None:
        record = self._of_another_node(NodeRecord, change)
        node_id = change.path.rpartition("/")[2]
        with self._lock:
            if record is None:
                self._addresses.pop(node_id, None)
            else:
                self._addresses[node_id] = record.agent_address

    def _note_resident(self, change: Change) -> None:
        record = self._of_another_node(ResidentRecord, change)
        node_id, digest = change.path.split("/")[-2:]
        with self._lock:
            holders = self._held.setdefault(digest, {})
            if record is None:
                holders.pop(node_id, None)
            else:
                holders[node_id] = record
            if not holders:
                del self._held[digest]

    def _of_another_node(self, cls: type[_R], change: Change) -> _R | None:
        if change.entry is None or self._node_id in change.path.split("/"):
            return None
        try:
            return decode(cls, change.entry.value)
        except BadRequest as error:
            _log.warning("record_unreadable", path=change.path, cause=error.cause)
            return None
