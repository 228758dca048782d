"""What one instance needs opened: its checkpoints, until they may be evicted, and its secrets."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from stoker.placement.errors import StokerError
from stoker.placement.records import CheckpointRef, FunctionRecord
from stoker.runtime.node import Node, OpenCheckpoint
from stoker.runtime.worker_start import CheckpointStart


class Openings:
    """Its model's checkpoint, an adapter's, its secrets, side by side. `age` is the instance's."""

    def __init__(self, node: Node, age: Callable[[], float]) -> None:
        self._node = node
        self._age = age
        self._refs: list[CheckpointRef] = []
        self._openings: list[asyncio.Future[OpenCheckpoint]] = []
        self._opened: list[OpenCheckpoint] = []
        self._secrets: asyncio.Future[int] | None = None

    def begin(self, function: FunctionRecord) -> None:
        loop, node = asyncio.get_running_loop(), self._node
        self._refs = [ref for ref in (function.checkpoint, function.adapter) if ref is not None]
        for ref in self._refs:
            opening = loop.run_in_executor(node.threads, node.open_checkpoint, ref, function)
            self._openings.append(opening)
        if function.secrets:
            self._secrets = loop.run_in_executor(node.threads, node.open_secrets, function)

    async def starts(self) -> list[CheckpointStart]:
        """What a worker must know of each checkpoint, once all is open; StokerError if not."""
        found = []
        if self._secrets is not None:
            await asyncio.shield(self._secrets)
        for ref, opening in zip(self._refs, self._openings, strict=True):
            # A thread cannot be cancelled: `close` closes what it opens too late.
            opened = await asyncio.shield(opening)
            self._opened.append(opened)
            found.append(
                CheckpointStart(
                    files_dir=str(opened.files_dir),
                    layout_path=str(opened.layout_path),
                    chunks=tuple(opened.chunks),
                    byte_count=opened.byte_count,
                    digest=ref.digest,
                    uri=ref.uri,
                    resident=opened.resident,
                    open_seconds=self._age(),
                )
            )
        return found

    @property
    def descriptors(self) -> list[int]:
        """Of the secrets, the pool and each load's progress, if there are any."""
        secrets = [] if self._secrets is None else [self._secrets.result()]
        if not self._opened:
            return secrets
        loads = (opened.progress.fd for opened in self._opened)
        return [*secrets, self._node.pool_descriptor, *loads]

    @property
    def transfer_seconds(self) -> tuple[float, float]:
        """How long the longest load took from afar, and from the disk; 0 for what was there."""
        found = [opened.progress for opened in self._opened if not opened.resident]
        fetched = max((progress.fetch_seconds for progress in found), default=0.0)
        return fetched, max((progress.load_seconds for progress in found), default=0.0)

    async def failure(self, timeout_seconds: float) -> StokerError | None:
        """What a load failed with, or None once everything is in memory."""
        loop, threads = asyncio.get_running_loop(), self._node.waiting_threads
        try:
            for opened in self._opened:
                await loop.run_in_executor(threads, opened.wait, timeout_seconds)
        except StokerError as error:
            return error
        return None

    def forget_secrets(self) -> None:
        """The worker has its own descriptor of them."""
        if self._secrets is not None:
            self._secrets.add_done_callback(_close_descriptor)
            self._secrets = None

    def close(self) -> None:
        self.forget_secrets()
        for opening in self._openings:
            opening.add_done_callback(_close)


def _close(opening: asyncio.Future[OpenCheckpoint]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _close_descriptor(opening: asyncio.Future[int]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result())
