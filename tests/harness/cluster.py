"""A controller on a memory store, with a clock moved by hand and agents played by the test."""

import dataclasses
from typing import Any

from stoker.placement.controller import Controller
from stoker.placement.errors import StokerError
from stoker.placement.memory_store import MemoryStore
from stoker.placement.records import (
    Assignment,
    DemandReport,
    FunctionDemand,
    FunctionRecord,
    InstanceRecord,
    InstanceState,
    NodeRecord,
    PlaceRequest,
    Scaling,
    decode,
    encode,
)
from stoker.placement.store import Fence
from stoker.placement.view import View

EPOCH_PATH = "/placement/epoch"
FUNCTION = FunctionRecord(
    "f", "ns", "img", scaling=Scaling(minimum=0, maximum=2, concurrency=1, idle_seconds=60.0)
)


class Cluster:
    def __init__(self) -> None:
        self.store = MemoryStore()
        self.now = 1000.0
        self.own = self.store.session()
        self.view = View(self.own)
        self.controller = Controller(self.own, self.view, "me", lambda: self.now)

    def elect(self, controller: Controller | None = None) -> int:
        epoch = self.store.put(EPOCH_PATH, b"x") + 1
        (controller or self.controller).on_elected(epoch, Fence(EPOCH_PATH, epoch - 1))
        return epoch

    def deploy(self, function: FunctionRecord = FUNCTION) -> None:
        self.store.put(function.path, encode(function))

    def join(self, node_id: str = "n", sockets: int = 4, **fields: Any) -> NodeRecord:
        spares = tuple(f"{node_id}:{port}" for port in range(sockets))
        node = NodeRecord(node_id, "", 2, 10**9, 10**9, 8, spares, zygote_ready=True)
        node = dataclasses.replace(node, **fields)
        self.store.put(node.path, encode(node))
        return node

    def announce(
        self, made: Assignment, state: InstanceState, error: StokerError | None = None
    ) -> None:
        instance = InstanceRecord(
            made.instance_id,
            made.function,
            made.generation,
            made.node_id,
            made.address,
            state,
            made.epoch,
            self.now,
            failure=error.to_wire() if error else None,
        )
        self.store.put(instance.path, encode(instance))

    def version(self, function: str = "f.ns") -> int:
        return self.view.snapshot().function_versions.get(function, -1)

    def place(self, queued: int = 1, gateway: str = "g", function: str = "f.ns") -> list[str]:
        demand = FunctionDemand(0, queued, 0.0, self.version(function))
        answer = self.controller.place(PlaceRequest(gateway, function, demand))
        return [a.instance_id for a in answer.assignments]

    def report(
        self,
        in_flight: int = 0,
        idle_seconds: float = 0.0,
        gateway: str = "g",
        version: int | None = None,
    ) -> None:
        """What a gateway says that was last called when the function had this version."""
        called = self.version() if version is None else version
        demand = FunctionDemand(in_flight, 0, idle_seconds, called)
        self.controller.report(DemandReport(gateway, {"f.ns": demand}))
        self.controller.reconcile()

    def assigned(self) -> list[Assignment]:
        return [decode(Assignment, entry.value) for entry in self.store.list("/assignments")]

    def serve(self) -> None:
        for made in self.assigned():
            self.announce(made, "serving")
