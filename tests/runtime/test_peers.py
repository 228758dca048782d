from __future__ import annotations

from harness.waiting import eventually
from stoker.placement.memory_store import MemoryStore
from stoker.placement.records import NodeRecord, ResidentRecord, encode
from stoker.runtime.peers import PEERS_MAXIMUM, PeerDirectory

DIGEST = "d" * 64


def node(node_id: str) -> NodeRecord:
    return NodeRecord(node_id, f"{node_id}:9000", 1, 1, 1, 1)


def test_the_nodes_that_hold_a_checkpoint_are_named_without_oneself() -> None:
    store = MemoryStore()
    directory = PeerDirectory("me")
    records = [
        *(node("me"), node("disk"), node("memory"), node("empty")),
        ResidentRecord("me", DIGEST, 9, 9),
        ResidentRecord("disk", DIGEST, 0, 9),
        ResidentRecord("memory", DIGEST, 9, 0),
        ResidentRecord("gone", DIGEST, 9, 9),
        ResidentRecord("empty", "e" * 64, 9, 9),
    ]
    for record in records[:6]:
        store.put(record.path, encode(record))
    directory.watch(store)
    for record in records[6:]:
        store.put(record.path, encode(record))

    eventually(lambda: directory.holding(DIGEST) == ("memory:9000", "disk:9000"))

    store.put(node("memory").path, b"not a record")
    eventually(lambda: directory.holding(DIGEST) == ("disk:9000",))
    store.delete(f"/residents/disk/{DIGEST}")
    eventually(lambda: directory.holding(DIGEST) == ())
    store.close()


def test_at_most_a_few_peers_are_named() -> None:
    store = MemoryStore()
    for number in range(PEERS_MAXIMUM + 3):
        for record in (node(f"n{number}"), ResidentRecord(f"n{number}", DIGEST, number, 0)):
            store.put(record.path, encode(record))
    directory = PeerDirectory("me")
    directory.watch(store)

    eventually(lambda: len(directory.holding(DIGEST)) == PEERS_MAXIMUM)
    eventually(lambda: directory.holding(DIGEST)[0] == f"n{PEERS_MAXIMUM + 2}:9000")
    store.close()
