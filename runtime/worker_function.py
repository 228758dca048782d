"""Makes a worker's function callable: a model around the pool's bytes, or the user's code."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from stoker.native import Progress
from stoker.placement.errors import StartFailed, StokerError
from stoker.placement.function_code import kind_of_code, stated_kind
from stoker.runtime.handlers import functions_framework, knative
from stoker.runtime.handlers.code import listing
from stoker.runtime.handlers.openfaas import Context, FunctionHandler, load_handle
from stoker.runtime.handlers.process import ProcessHandler
from stoker.runtime.template import Adapter, ModelTemplate, template_key
from stoker.runtime.worker_http import Ready, guarded
from stoker.runtime.worker_start import WorkerStart


def build(
    start: WorkerStart,
    template: ModelTemplate | None,
    descriptors: tuple[int, ...],
    on_lost: Callable[[], None],
) -> Ready:
    """The function of `start`, ready to be called; StokerError when it cannot be.

    `descriptors` are those of the pool and of the progress of each load. The weights may still be
    on their way: a forward pass waits for what it needs of them. `on_lost` is called on the event
    loop when the engine has died.
    """
    if start.failure is not None:
        raise StokerError.from_wire(start.failure)
    if start.checkpoint is None or start.function.task == "custom":
        made = _custom(start)
        return replace(made, handler=guarded(made.handler), at=time.monotonic())
    if not descriptors:
        raise StartFailed(
            "Expected the pool's descriptor with the checkpoint, found none.",
            "Run the same release of Stoker in agent and zygote.",
        )
    checkpoint = start.checkpoint
    if template is None:
        template = ModelTemplate(template_key(start.function, checkpoint.digest), checkpoint)
    pool, progress_descriptor, *adapter_progress = descriptors
    progress = None if checkpoint.resident else Progress.open(progress_descriptor)
    adapter = None
    if start.adapter is not None:
        adapter = Adapter(start.adapter, pool, Progress.open(adapter_progress[0]))
    handler, arrival = template.start(pool, checkpoint.chunks, progress, on_lost, adapter)
    ready_at = time.monotonic()
    if progress is None or arrival is None:
        return Ready(guarded(handler), ready_at)
    return Ready(
        guarded(handler),
        ready_at,
        arrival.ended,
        # The small files came first, from where the weights came from.
        lambda: progress.fetch_seconds and progress.fetch_seconds + checkpoint.open_seconds,
    )


def _custom(start: WorkerStart) -> Ready:
    function = start.function
    if start.code_dir is None:
        raise StartFailed(
            f"Expected code for the function {function.key}, found none.",
            "Build and deploy it with faas-cli up, or give it a stoker/model.",
        )
    code_dir = Path(start.code_dir)
    kind = stated_kind(function.annotations) or kind_of_code(
        lambda name: (code_dir / name).is_file()
    )
    concurrency = function.scaling.concurrency
    if kind == "knative":
        knative_function = knative.load(code_dir)
        return Ready(knative_function, start=knative_function.start, stop=knative_function.stop)
    if kind == "functions-framework":
        return Ready(functions_framework.load(code_dir, concurrency))
    if kind == "process":
        if not function.env_process:
            raise StartFailed(
                f"Expected handler.py, main.py or func.py in the code of {function.key}, or an "
                f"fprocess; found neither, but {listing(code_dir)}.",
                "Add one of these files, or set fprocess.",
            )
        return Ready(ProcessHandler(function.env_process.split(), code_dir, os.environ))
    context = Context(
        start.instance_id, function.name, function.namespace, dict(function.environment)
    )
    return Ready(FunctionHandler(load_handle(code_dir), context, concurrency))
