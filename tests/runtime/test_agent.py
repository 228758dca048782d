"""The agent in this process: a store in memory, and workers that are only noted."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from stoker.placement.memory_store import MemoryStore
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
from stoker.runtime import agent as agent_module
from stoker.runtime.agent import SPARE_SOCKETS, Agent, Tiers
from stoker.runtime.announcements import Announcements
from stoker.runtime.cgroups import ControlGroups
from stoker.runtime.function_logs import FunctionLogs
from stoker.runtime.node import Node, OpenCheckpoint
from stoker.runtime.parked import ParkedProcesses
from stoker.runtime.secret_files import packed
from stoker.runtime.spare_sockets import SpareSockets
from stoker.runtime.worker_start import WorkerStart

FUNCTION = FunctionRecord("echo", "openfaas-fn", "echo:latest", generation=2)


@dataclass(frozen=True)
class Held:
    digest: str
    dram_bytes: int
    ssd_bytes: int


class Worker:
    """Ends with its first signal."""

    def __init__(self, start: WorkerStart, descriptors: Sequence[int]) -> None:
        self.pid = 4242
        self.start = start
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._status = os.dup(descriptors[2])
        os.write(self._status, b'{"event": "serving", "init_seconds": 0.5}\n')

    def signal(self, number: signal.Signals) -> None:
        os.close(self._status)
        self.exited.set_result(-number)


class World:
    def __init__(self, tmp_path: Path, instances_maximum: int) -> None:
        self.store = MemoryStore()
        self.agents = self.store.session()
        self.store.put(FUNCTION.path, encode(FUNCTION))
        self.workers: list[Worker] = []
        self.residents: list[Held] = []
        self.bandwidths = (0.0, 0.0, 0.0)
        self.zygote_ready = True
        self.orders: list[Sequence[CheckpointRef]] = []
        self.stop = asyncio.Event()
        announcements = Announcements(self.agents)
        self.agent = Agent(
            NodeRecord("n1", "127.0.0.1:1", 2, 10, 20, instances_maximum),
            self.agents,
            SpareSockets("127.0.0.1"),
            announcements,
            Tiers(lambda: self.residents, lambda: self.bandwidths, self.orders.append),
            lambda: self.zygote_ready,
        )
        executor = ThreadPoolExecutor(4)
        groups, logs = ControlGroups([], {}), FunctionLogs(tmp_path / "logs")
        self.node = Node(
            open_checkpoint=self.open_checkpoint,
            open_code=lambda digest: tmp_path,
            open_secrets=lambda function: packed({}),
            zygote_for=self.zygote_for,
            parking=ParkedProcesses(self.zygote_for, groups, logs, tmp_path / "run"),
            announcer=announcements,
            on_serving=self.agent.note_init_seconds,
            logs=logs,
            pool_descriptor=2,
            cluster_token="token",
            threads_per_worker=1,
            run_dir=tmp_path / "run",
            threads=executor,
            waiting_threads=executor,
            groups=groups,
            sandbox_levels=(),
            hidden=(),
        )

    def open_checkpoint(self, ref: CheckpointRef, function: FunctionRecord) -> OpenCheckpoint:
        raise AssertionError("no function here has a model")

    @asynccontextmanager
    async def zygote_for(
        self, code_dir: Path | None, log: Callable[[list[str]], None]
    ) -> AsyncIterator[World]:
        yield self

    async def start(self, start: WorkerStart, descriptors: Sequence[int]) -> Worker:
        self.workers.append(Worker(start, descriptors))
        return self.workers[-1]

    async def until(self, holds: Callable[[], Any]) -> Any:
        for _ in range(1000):
            with suppress(AttributeError, LookupError):
                if value := holds():
                    return value
            await asyncio.sleep(0.005)
        raise AssertionError("it never held")

    def record(self) -> NodeRecord:
        entry = self.store.get("/nodes/n1")
        assert entry is not None
        return decode(NodeRecord, entry.value)

    def instance(self, instance_id: str) -> InstanceRecord | None:
        entry = self.store.get(f"/instances/n1/{instance_id}")
        return None if entry is None else decode(InstanceRecord, entry.value)

    async def in_state(self, instance_id: str, state: str) -> InstanceRecord:
        def holds() -> InstanceRecord | None:
            record = self.instance(instance_id)
            return record if record is not None and record.state == state else None

        found: InstanceRecord = await self.until(holds)
        return found

    def assign(
        self, instance_id: str, address: str = "", epoch: int = 1, generation: int = 2
    ) -> Assignment:
        address = address or self.record().spare_addresses[0]
        order = Assignment(instance_id, FUNCTION.key, generation, "n1", address, epoch, 5.0)
        self.store.put(order.path, encode(order))
        return order


def in_world(
    tmp_path: Path,
    story: Callable[[World], Coroutine[Any, Any, None]],
    instances_maximum: int = 16,
) -> World:
    async def run() -> World:
        world = World(tmp_path, instances_maximum)
        running = asyncio.ensure_future(world.agent.run(world.node, world.stop))
        await world.until(lambda: world.store.get("/nodes/n1"))
        await story(world)
        world.stop.set()
        await asyncio.wait_for(running, 10)
        world.agents.close()
        return world

    return asyncio.run(run())


def test_an_assignment_becomes_a_serving_instance_and_ends_when_it_is_revoked(
    tmp_path: Path,
) -> None:
    async def story(world: World) -> None:
        order = world.assign("1-0")
        record = await world.in_state("1-0", "serving")
        assert (record.address, record.pid, record.generation) == (order.address, 4242, 2)
        assert world.workers[0].start.function == FUNCTION
        world.store.delete(order.path)
        await world.until(lambda: world.instance("1-0") is None)
        assert world.workers[0].exited.result() == -signal.SIGTERM

    in_world(tmp_path, story)


def test_a_claimed_socket_is_replaced_at_once(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        before = world.record().spare_addresses
        world.assign("1-0", before[1])
        await world.in_state("1-0", "serving")
        await world.until(lambda: before[1] not in world.record().spare_addresses)
        assert len(world.record().spare_addresses) == len(before) == 4

    in_world(tmp_path, story)


def test_a_full_node_has_addresses_for_who_takes_the_place_of_another(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        for number in range(2):
            world.assign(f"1-{number}")
            await world.in_state(f"1-{number}", "serving")
        await world.until(lambda: len(world.record().spare_addresses) == SPARE_SOCKETS)
        assert world.record().instances_maximum == 2

    in_world(tmp_path, story, instances_maximum=2)


def test_an_address_that_is_not_held_fails_until_the_leader_takes_it_back(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        order = world.assign("1-0", "127.0.0.1:9")
        record = await world.in_state("1-0", "failed")
        assert record.failure is not None
        assert record.failure["code"] == "start_failed"
        assert "the agent was restarted" in record.failure["cause"]
        world.store.delete(order.path)
        await world.until(lambda: world.instance("1-0") is None)
        assert world.workers == []

    in_world(tmp_path, story)


def test_an_order_of_an_older_leader_is_refused(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.assign("7-0", epoch=7)
        await world.in_state("7-0", "serving")
        world.assign("6-0", epoch=6)
        record = await world.in_state("6-0", "failed")
        assert record.failure is not None
        assert record.failure["code"] == "fenced"
        assert len(world.workers) == 1

    in_world(tmp_path, story)


@pytest.mark.parametrize("generation", [1, 3])
def test_another_generation_than_assigned_is_not_started(tmp_path: Path, generation: int) -> None:
    async def story(world: World) -> None:
        world.assign("1-0", generation=generation)
        record = await world.in_state("1-0", "failed")
        assert record.failure is not None
        assert f"generation {generation}, found generation 2" in record.failure["cause"]

    in_world(tmp_path, story)


def test_a_dead_worker_frees_its_slot_and_its_record_stays_failed(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        order = world.assign("1-0")
        await world.in_state("1-0", "serving")
        world.workers[0].signal(signal.SIGKILL)
        record = await world.in_state("1-0", "failed")
        assert record.failure is not None
        assert "died of signal 9" in record.failure["cause"]
        await world.until(lambda: world.agent.live_count == 0)
        world.store.put(order.path, encode(order))
        await asyncio.sleep(0.05)
        assert len(world.workers) == 1
        world.store.delete(order.path)
        await world.until(lambda: world.instance("1-0") is None)

    in_world(tmp_path, story)


def test_what_changed_is_announced(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.zygote_ready = False
        world.agent.announce()
        await world.until(lambda: not world.record().zygote_ready)
        world.bandwidths = (3e9, 1e9, 2e9)
        world.residents = [Held("a" * 64, 5, 7), Held("b" * 64, 0, 1)]
        await asyncio.to_thread(world.agent.note_change)
        await world.until(lambda: world.record().remote_bandwidth == 3e9)
        assert (world.record().ssd_bandwidth, world.record().peer_bandwidth) == (1e9, 2e9)
        entry = await world.until(lambda: world.store.get(f"/residents/n1/{'a' * 64}"))
        assert decode(ResidentRecord, entry.value) == ResidentRecord("n1", "a" * 64, 5, 7)
        world.residents = world.residents[:1]
        world.agent.note_change()
        await world.until(lambda: world.store.get(f"/residents/n1/{'b' * 64}") is None)
        world.assign("1-0")
        await world.until(lambda: world.record().init_seconds == 0.5)

    in_world(tmp_path, story)


def test_a_lost_session_writes_every_record_again_and_keeps_the_workers(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.residents = [Held("a" * 64, 5, 7)]
        world.agent.note_change()
        world.assign("1-0")
        await world.in_state("1-0", "serving")
        await world.until(lambda: world.store.get(f"/residents/n1/{'a' * 64}"))
        world.agents.expire()
        await world.until(lambda: world.store.get("/nodes/n1"))
        await world.until(lambda: world.store.get(f"/residents/n1/{'a' * 64}"))
        await world.in_state("1-0", "serving")
        assert len(world.workers) == 1

    in_world(tmp_path, story)


def test_a_record_that_somebody_deleted_is_written_again(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.store.delete("/nodes/n1")
        await world.until(lambda: world.store.get("/nodes/n1"))

    in_world(tmp_path, story)


def test_an_unreadable_assignment_is_passed_over(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.store.put("/assignments/n1/1-0", b"not a record")
        order = Assignment("../x", FUNCTION.key, 2, "n1", world.record().spare_addresses[0], 1, 0.0)
        world.store.put("/assignments/n1/1-1", encode(order))
        world.assign("1-2")
        await world.in_state("1-2", "serving")
        assert len(world.workers) == 1

    in_world(tmp_path, story)


@pytest.mark.parametrize(("lost", "seconds"), [(True, 600.0), (False, 30.0)])
def test_what_was_given_up_with_the_nodes_session_has_longer_to_end_than_what_was_stopped(
    tmp_path: Path, lost: bool, seconds: float
) -> None:
    async def story(world: World) -> None:
        order = world.assign("1-0")
        await world.in_state("1-0", "serving")
        (worker,) = world.workers
        told: list[signal.Signals] = []
        worker.signal = told.append  # type: ignore[method-assign] # it drains
        if lost:
            world.agents.suspend()
        world.store.delete(order.path)
        if lost:
            world.agents.expire()
        await world.until(lambda: told)
        assert world.agent._running["1-0"].instance._drain_seconds == seconds
        Worker.signal(worker, signal.SIGTERM)

    in_world(tmp_path, story)


def test_stopping_drains_every_instance_and_leaves_no_record(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.assign("1-0")
        await world.in_state("1-0", "serving")

    world = in_world(tmp_path, story)
    assert world.workers[0].exited.result() == -signal.SIGTERM
    assert world.store.list("/nodes") == ()
    assert world.store.list("/instances") == ()


def test_an_order_to_read_ahead_is_followed_unless_its_leader_is_gone(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.assign("3-0", epoch=3)
        await world.in_state("3-0", "serving")
        model = CheckpointRef("s3://b/m", "a" * 64, 10, packed=True)
        for epoch in (3, 2, 4):
            order = Prefetch("n1", epoch, (replace(model, weight_bytes=epoch),))
            world.store.put(order.path, encode(order))
        world.store.delete(order.path)
        await world.until(lambda: world.orders[-1] == ())
        assert [order[0].weight_bytes for order in world.orders if order] in ([3, 4], [4])

    in_world(tmp_path, story)


def test_what_a_deleted_function_wrote_goes_in_time_or_with_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "DELETED_LOGS_SECONDS", 0.2)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "before.openfaas-fn.ndjson").touch()

    async def story(world: World) -> None:
        logs = world.node.logs
        other = replace(FUNCTION, name="other")
        world.store.put(other.path, encode(other))
        for key in (FUNCTION.key, other.key):
            logs.append(key, "i-1", ["line"])
        await world.until(lambda: logs.functions() == {FUNCTION.key, other.key})
        world.store.delete(other.path)
        await asyncio.sleep(0.05)
        assert other.key in logs.functions()
        await world.until(lambda: logs.functions() == {FUNCTION.key})

    in_world(tmp_path, story)
