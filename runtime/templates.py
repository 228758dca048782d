"""What a zygote keeps of the functions for which it parked workers: everything but the weights."""

from __future__ import annotations

import gc
from collections import OrderedDict

import structlog

from stoker.placement.errors import StartFailed
from stoker.runtime.checkpoint import adapter
from stoker.runtime.template import ModelTemplate, TemplateKey, template_key
from stoker.runtime.worker_start import WorkerStart

TEMPLATES_MAXIMUM = 8

_log = structlog.get_logger()


class Templates:
    """Of the last few model functions. One that cannot be made is not tried again."""

    def __init__(self) -> None:
        self._made: OrderedDict[TemplateKey, ModelTemplate | StartFailed] = OrderedDict()
        self._adapters_used = False

    def find(self, start: WorkerStart) -> ModelTemplate | None:
        """What is there for `start`; None for a function with code."""
        key = _key(start)
        if key is None or key not in self._made:
            return None
        self._made.move_to_end(key)
        made = self._made[key]
        return made if isinstance(made, ModelTemplate) else None

    def make(self, start: WorkerStart) -> ModelTemplate | None:
        """What `start` will find from now on; None for a function with code.

        StartFailed when it cannot be made, which is left to the function's workers to explain.
        """
        key = _key(start)
        if key is None or start.checkpoint is None:
            return None
        try:
            if start.adapter is not None and not self._adapters_used:
                self._adapters_used = True
                adapter.preload()
            if key not in self._made:
                self._made[key] = ModelTemplate(key, start.checkpoint)
        except Exception as error:  # noqa: BLE001 (a zygote outlives any checkpoint)
            _log.warning("template_failed", digest=key.digest, cause=str(error))
            self._made[key] = StartFailed(f"Expected to make a template, found: {error}.")
        while len(self._made) > TEMPLATES_MAXIMUM:
            self._made.popitem(last=False)
        freeze()
        made = self._made[key]
        if isinstance(made, StartFailed):
            raise made
        return made


def freeze() -> None:
    """Moves all objects out of the collector's sight: it would copy their pages in each child."""
    gc.collect()
    gc.freeze()


def _key(start: WorkerStart) -> TemplateKey | None:
    if start.checkpoint is None or start.function.task == "custom":
        return None
    return template_key(start.function, start.checkpoint.digest)
