"""`python -m stoker.runtime.agent_main`: one node agent, wired from its settings."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
import time
from asyncio import to_thread
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog

from stoker.native import Pool
from stoker.placement.bundles import open_bundles
from stoker.placement.errors import DeviceFailed, StartFailed, StokerError
from stoker.placement.records import CheckpointRef, FunctionRecord, NodeRecord
from stoker.placement.state_lock import lock_state
from stoker.placement.store import Store
from stoker.placement.stores import open_store
from stoker.runtime import cgroup_trees, sandbox
from stoker.runtime.agent import Agent, Tiers
from stoker.runtime.agent_http import Server, application
from stoker.runtime.announcements import Announcements
from stoker.runtime.cgroups import ControlGroups
from stoker.runtime.checkpoint.manifest import Manifest
from stoker.runtime.checkpoint.residency import Residency
from stoker.runtime.checkpoint.settings import CheckpointSettings
from stoker.runtime.checkpoint.source import prepare_s3
from stoker.runtime.checkpoint.tiers import CheckpointCache
from stoker.runtime.code_cache import CodeCache
from stoker.runtime.environments import Environment, Environments
from stoker.runtime.function_logs import FunctionLogs
from stoker.runtime.gpus import Gpu, largest_group, read_driver
from stoker.runtime.limits import free_memory_bytes
from stoker.runtime.node import Node
from stoker.runtime.parked import ParkedProcesses
from stoker.runtime.peers import PeerDirectory
from stoker.runtime.preflight import check_memory
from stoker.runtime.read_ahead import ReadAhead
from stoker.runtime.secrets import SecretReader
from stoker.runtime.settings import Settings
from stoker.runtime.spare_sockets import SpareSockets, address_of, listen
from stoker.runtime.worker_start import ZygoteStart
from stoker.runtime.zygote_client import ZygoteClient, program
from stoker.runtime.zygotes import Zygotes

OPENING_THREADS = 8

_log = structlog.get_logger()


def main() -> int:
    """Run until SIGTERM or SIGINT; 0 after an orderly end, 1 when the start was refused."""
    try:
        settings = Settings.from_environment(os.environ)
        checkpoint_settings = CheckpointSettings.from_environment(os.environ)
        _configure_logging(settings.log_level)
        for directory in (settings.ssd_dir, settings.run_dir):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with lock_state(settings.state_dir, "agent"):
            return _run(settings, checkpoint_settings)
    except StokerError as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _run(settings: Settings, checkpoint_settings: CheckpointSettings) -> int:
    # What the instances of an agent left that was killed.
    shutil.rmtree(settings.run_dir / "instances", ignore_errors=True)
    pool = _pool(settings)
    store = open_store(settings.store_url, settings.cluster_token)
    try:
        asyncio.run(_serve(settings, checkpoint_settings, store, pool))
    except StokerError as error:
        _log.error("agent_failed", cause=error.cause, remedy=error.remedy)
        return 1
    finally:
        store.close()
    return 0


def _pool(settings: Settings) -> Pool:
    """The node's memory for checkpoints, in the memory file that was handed over, if any."""
    try:
        return Pool(settings.dram_bytes, settings.pool_descriptor)
    except (OSError, ValueError) as error:
        raise StartFailed(
            f"Expected {settings.dram_bytes} bytes of shared memory for checkpoints, "
            f"found: {error}.",
            "Correct STOKER_DRAM_BYTES, or unset STOKER_POOL_DESCRIPTOR.",
        ) from error
    finally:
        if settings.pool_descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(settings.pool_descriptor)


async def _serve(
    settings: Settings, checkpoint_settings: CheckpointSettings, store: Store, pool: Pool
) -> None:
    announcements, stop = Announcements(store), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    listening = listen(settings.bind_host, settings.bind_port)
    pool.prefault(1)
    logs, run_dir = FunctionLogs(settings.function_logs_dir), settings.run_dir
    agent: Agent | None = None  # It, zygote and cache tell each other, once all exist.
    cache = CheckpointCache(
        settings.ssd_dir,
        settings.ssd_bytes,
        pool,
        checkpoint_settings,
        on_change=lambda: agent.note_change() if agent else None,
        cluster_token=settings.cluster_token,
    )
    (groups, levels), gpus = await asyncio.gather(to_thread(_holds), to_thread(_devices))
    zygote = ZygoteClient(
        program(run_dir, os.environ), on_change=lambda: agent.announce() if agent else None
    )
    zygotes = _zygotes(settings, zygote)
    peers = await to_thread(_peers, settings, store)
    read_ahead = _read_ahead(cache, peers)
    agent = Agent(
        _record(settings, address_of(listening), pool, levels + groups.levels, gpus),
        store,
        SpareSockets(settings.bind_host),
        announcements,
        Tiers(cache.residents, cache.bandwidths, read_ahead.follow),
        lambda: zygote.ready,
    )
    with (
        ThreadPoolExecutor(OPENING_THREADS, "open") as threads,
        ThreadPoolExecutor(settings.instances_maximum, "wait-for-load") as waiting_threads,
    ):
        node = Node(
            open_checkpoint=_opener(cache, peers, pool),
            open_code=_code(settings, store).open,
            open_secrets=SecretReader(store, settings.cluster_token).open,
            zygote_for=zygotes.lease,
            parking=ParkedProcesses(zygotes.lease, groups, logs, run_dir, agent.announce),
            announcer=announcements,
            on_serving=agent.note_init_seconds,
            logs=logs,
            pool_descriptor=pool.reader_fd,
            cluster_token=settings.cluster_token,
            threads_per_worker=settings.cores,
            run_dir=run_dir,
            threads=threads,
            waiting_threads=waiting_threads,
            groups=groups,
            sandbox_levels=levels,
            hidden=(str(settings.state_dir),),
            devices=tuple(gpu.identifier for gpu in gpus),
        )
        threads.submit(prepare_s3, checkpoint_settings)
        server = Server(application(settings.cluster_token, cache, logs, agent.health))
        serving = asyncio.ensure_future(server.serve(sockets=[listening]))
        forking = asyncio.ensure_future(zygotes.run())
        _log.info("agent_started", node_id=settings.node_id, address=address_of(listening))
        try:
            await agent.run(node, stop)
        finally:
            server.should_exit = True
            forking.cancel()
            await asyncio.wait({serving, forking})
            await to_thread(_end_loads, cache, read_ahead)
    _log.info("agent_stopped", node_id=settings.node_id)


def _code(settings: Settings, store: Store) -> CodeCache:
    bundles = open_bundles(settings.bundles_url, settings.store_url, store)
    return CodeCache(settings.code_dir, bundles)


def _peers(settings: Settings, store: Store) -> PeerDirectory:
    peers = PeerDirectory(settings.node_id)
    peers.watch(store)
    return peers


def _read_ahead(cache: CheckpointCache, peers: PeerDirectory) -> ReadAhead:
    return ReadAhead(lambda ref: cache.read_ahead(ref, peers=peers.holding(ref.digest)))


def _end_loads(cache: CheckpointCache, read_ahead: ReadAhead) -> None:
    read_ahead.close()
    cache.close()
    read_ahead.join()


def _holds() -> tuple[ControlGroups, tuple[str, ...]]:
    """What workers will be held by here; what they will not be held by is logged."""
    groups, found = cgroup_trees.find(), sandbox.probe()
    missing = {name: why for name, why in {**found, **groups.missing}.items() if why}
    if missing:
        _log.warning("sandbox_incomplete", **missing)
    groups.remove_leftovers()
    return groups, sandbox.in_force(found)


def _devices() -> tuple[Gpu, ...]:
    """The GPUs that instances may be given here; what others there are is logged."""
    try:
        found = read_driver().gpus
    except DeviceFailed as error:
        _log.warning("gpus_unknown", cause=error.cause, remedy=error.remedy)
        return ()
    chosen = largest_group(found)
    if len(chosen) < len(found):
        left_out = sorted({gpu.kind for gpu in found} - {gpu.kind for gpu in chosen})
        _log.warning("gpus_left_out", kinds=left_out, announced=chosen[0].kind)
    return chosen


def _record(
    settings: Settings,
    address: str,
    pool: Pool,
    sandbox_levels: tuple[str, ...],
    gpus: tuple[Gpu, ...],
) -> NodeRecord:
    return NodeRecord(
        node_id=settings.node_id,
        agent_address=address,
        cores=settings.cores,
        dram_bytes=pool.capacity_bytes,
        ssd_bytes=settings.ssd_bytes,
        instances_maximum=settings.instances_maximum,
        sandbox=sandbox_levels,
        zone=settings.zone,
        device_kind=gpus[0].kind if gpus else "cpu",
        device_count=len(gpus),
        device_bytes=min((gpu.memory_bytes for gpu in gpus), default=0),
    )


def _zygotes(settings: Settings, own: ZygoteClient) -> Zygotes:
    """The zygotes of this node: `own`, and a fork of it in each environment that functions need."""
    environments = Environments(settings.environments_dir, os.environ, own.imported)

    def zygote_of(wanted: Environment) -> ZygoteClient:
        start = ZygoteStart(f"environment-{wanted.digest[:12]}", str(wanted.folder))
        return ZygoteClient(lambda control: own.start(start, [control]))

    return Zygotes(own, environments, zygote_of)


def _opener(
    cache: CheckpointCache, peers: PeerDirectory, pool: Pool
) -> Callable[[CheckpointRef, FunctionRecord], Residency]:
    """Opens what somebody waits for now, which no prefetch may delay; other nodes are asked."""

    def open_checkpoint(ref: CheckpointRef, function: FunctionRecord) -> Residency:
        def check(manifest: Manifest, files_dir: Path) -> None:
            # What the pool has not taken yet is promised to checkpoints.
            promised = pool.capacity_bytes - pool.prefaulted_bytes
            check_memory(function, manifest, files_dir, free_memory_bytes() - promised)

        held = peers.holding(ref.digest)
        if ref != function.checkpoint:
            return cache.open(ref, deadline=time.monotonic(), peers=held)
        return cache.open(ref, deadline=time.monotonic(), peers=held, check=check)

    return open_checkpoint


def _configure_logging(level: str) -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


if __name__ == "__main__":
    sys.exit(main())
