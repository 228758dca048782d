"""Weights that are used while others still come: each layer waits for its own and no more.

pool     |embeddings|layer 0|layer 1|layer 2| ...   bytes come in the order of first use
forward   embeddings  layer 0  layer 1 ^ waits for its chunks
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future

import torch
from torch import nn

from stoker.placement.errors import StartFailed, StokerError
from stoker.runtime.engine.weights import STALL_SECONDS, LoadProgress, load_error, wait_for_bytes


class Arrival:
    """The load behind a model's weights, which begin at `base_address` in this process.

    `ended` is when the last of them arrived (monotonic), or what the load failed with.
    """

    def __init__(self, progress: LoadProgress, base_address: int) -> None:
        self._progress = progress
        self._base = base_address
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self.ended: Future[float] = Future()
        self.ended.set_running_or_notify_cancel()  # nobody who waits for it can cancel it
        threading.Thread(target=self._watch, name="arrival", daemon=True).start()

    def guard(self, model: nn.Module) -> None:
        """Have every layer of `model` wait for its weights before it runs.

        A layer is what a list of modules holds: it waits for all that is in it. Outside of
        layers, each module waits for its own parameters.
        """
        self._hooks.append(model.register_forward_pre_hook(self._release_when_complete))
        for module, parameters in _waiting(model):
            ranges = self._ranges(parameters)
            if ranges:
                hook = module.register_forward_pre_hook(
                    lambda *_, ranges=ranges: self._wait(ranges)
                )
                self._hooks.append(hook)

    def _watch(self) -> None:
        try:
            wait_for_bytes(self._progress, self._progress.total_bytes)
        except StokerError as error:
            self.ended.set_exception(error)
        else:
            self.ended.set_result(time.monotonic())

    def _release_when_complete(self, *_: object) -> None:
        if self.ended.done() and self.ended.exception() is None:
            # torch goes through a copy of its hooks, so that they may be removed from within one.
            for hook in self._hooks:
                hook.remove()
            self._hooks.clear()

    def _ranges(self, parameters: Iterable[nn.Parameter]) -> list[tuple[int, int]]:
        """The merged byte ranges of what lies in the pool."""
        found: list[tuple[int, int]] = []
        for begin, end in sorted(self._range(parameter) for parameter in parameters):
            if begin < 0 or end > self._progress.total_bytes:
                continue  # made here, as rotary tables are
            if found and begin <= found[-1][1]:
                found[-1] = (found[-1][0], max(end, found[-1][1]))
            else:
                found.append((begin, end))
        return found

    def _range(self, parameter: nn.Parameter) -> tuple[int, int]:
        begin = parameter.data_ptr() - self._base
        return begin, begin + parameter.nbytes

    def _wait(self, ranges: list[tuple[int, int]]) -> None:
        for begin, end in ranges:
            self._wait_for(begin, end)

    def _wait_for(self, begin: int, end: int) -> None:
        seen = -1
        while True:
            try:
                if self._progress.wait_for_range(begin, end, STALL_SECONDS):
                    return
            except TimeoutError as error:
                if self._progress.watermark_bytes <= seen:
                    raise StartFailed(
                        f"Expected bytes {begin} to {end} of the checkpoint, found its load at "
                        f"{self._progress.watermark_bytes} for {STALL_SECONDS:.0f} s.",
                        "Look at the node agent's log, and call the function again.",
                    ) from error
                seen = self._progress.watermark_bytes
                continue
            raise load_error(self._progress)


def _waiting(model: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Parameter]]]:
    """The modules that wait, each with the parameters that it waits for."""
    layers = [
        layer for stack in model.modules() if isinstance(stack, nn.ModuleList) for layer in stack
    ]
    inside = {id(part) for layer in layers for part in layer.modules()}
    yield from ((layer, list(layer.parameters())) for layer in layers)
    for module in model.modules():
        if id(module) not in inside:
            own = list(module.parameters(recurse=False))
            if own:
                yield module, own
