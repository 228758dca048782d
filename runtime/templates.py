"""What a zygote makes ready between two starts, for the functions that it started last."""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from stoker.runtime import sandbox
from stoker.runtime.parked import ParkedProcesses
from stoker.runtime.template import ModelTemplate, TemplateKey, template_key
from stoker.runtime.worker_start import CheckpointStart, WorkerStart

TEMPLATES_MAXIMUM = 8

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Wish:
    checkpoint: CheckpointStart
    threads: int
    levels: tuple[str, ...]
    plan: sandbox.Plan
    parks: bool


class Templates:
    """Templates of the last few functions, and processes parked for the very last ones."""

    def __init__(self) -> None:
        self.parked = ParkedProcesses()
        self._made: OrderedDict[TemplateKey, ModelTemplate | None] = OrderedDict()
        self._wishes: OrderedDict[TemplateKey, _Wish] = OrderedDict()

    @property
    def has_work(self) -> bool:
        return bool(self._wishes)

    def hand_over(
        self, start: WorkerStart, message: bytes, descriptors: Sequence[int]
    ) -> int | None:
        """The pid of a parked process that has taken the start, or None."""
        key = _key(start)
        # A parked process is in its sandbox already, out of the reach of any adapter's files.
        if key is None or start.adapter is not None:
            return None
        return self.parked.hand_over(key, message, descriptors)

    def take(self, start: WorkerStart) -> ModelTemplate | None:
        """What is ready for `start`; the next one will find more."""
        key = _key(start)
        if key is None or start.checkpoint is None:
            return None
        plan = sandbox.Plan(
            # Not the instance's own, which ends with it.
            Path(start.work_dir).with_name("parked"),
            readable=(start.checkpoint.files_dir, start.checkpoint.layout_path),
            hidden=start.sandbox.hidden,
            in_memory=True,
        )
        # A start with an adapter does not take back what one without wishes.
        before = self._wishes.get(key)
        parks = start.adapter is None or (before is not None and before.parks)
        self._wishes[key] = _Wish(
            start.checkpoint, start.threads, start.sandbox.levels, plan, parks
        )
        while len(self._wishes) > TEMPLATES_MAXIMUM:
            self._wishes.popitem(last=False)
        if key in self._made:
            self._made.move_to_end(key)
        return self._made.get(key)

    def work(self, leave: Callable[[], None]) -> None:
        """Fulfils one wish. What cannot be made is left to its worker, which says why.

        A process that this forks calls `leave` first.
        """
        key, wish = self._wishes.popitem()
        if key not in self._made:
            self._made[key] = _make(key, wish.checkpoint)
            while len(self._made) > TEMPLATES_MAXIMUM:
                self._made.popitem(last=False)
            freeze()
        template = self._made[key]
        if template is not None and wish.parks and key not in self.parked:
            self.parked.park(key, template, wish.threads, wish.levels, wish.plan, leave)


def freeze() -> None:
    """Moves all objects out of the collector's sight: it would copy their pages in each child."""
    gc.collect()
    gc.freeze()


def _key(start: WorkerStart) -> TemplateKey | None:
    if start.checkpoint is None or start.function.task == "custom":
        return None
    return template_key(start.function, start.checkpoint.digest)


def _make(key: TemplateKey, checkpoint: CheckpointStart) -> ModelTemplate | None:
    try:
        return ModelTemplate(key, checkpoint)
    except Exception as error:  # noqa: BLE001 (a zygote outlives any checkpoint)
        _log.warning("template_failed", digest=key.digest, cause=str(error))
        return None
