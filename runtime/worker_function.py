"""Makes a worker's function callable: a model around the pool's bytes, or the user's code."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from stoker.native import Progress
from stoker.placement.errors import StartFailed, StokerError
from stoker.placement.function_code import kind_in
from stoker.placement.spec_probes import health_probe, ready_probe
from stoker.runtime.engine.model_task import model_task
from stoker.runtime.handlers import functions_framework, knative
from stoker.runtime.handlers.code import listing
from stoker.runtime.handlers.context_model import ContextModel
from stoker.runtime.handlers.deadline import limited
from stoker.runtime.handlers.events import EventHandler, as_prompt, as_sent
from stoker.runtime.handlers.openfaas import Context, FunctionHandler, load_handle
from stoker.runtime.handlers.process import ProcessHandler
from stoker.runtime.template import Adapter, AdapterTemplate, ModelTemplate, template_key
from stoker.runtime.worker_http import Ready, guarded
from stoker.runtime.worker_start import WorkerStart

Code = Callable[[str, ContextModel | None], Ready]
"""User code that has been imported: what makes it the function of the instance with this id."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a process has of its function ahead of the start."""

    template: ModelTemplate | None = None
    code: Code | None = None
    adapter: AdapterTemplate | None = None


def prepare(start: WorkerStart, template: ModelTemplate | None) -> Prepared:
    """All that can be made before anybody waits, in a process that is to fork no more.

    Imports the function's code, or runs its model over weights that read as zeros. StokerError
    when that fails.
    """
    if template is None:
        return Prepared(code=import_code(start))
    adapter = None if start.adapter is None else AdapterTemplate(start.adapter)
    template.rehearse(adapter)
    return Prepared(template, adapter=adapter)


def build(
    start: WorkerStart,
    prepared: Prepared,
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
    if start.checkpoint is None:
        return _coded(start, prepared, None)
    if not descriptors:
        raise StartFailed(
            "Expected the pool's descriptor with the checkpoint, found none.",
            "Run the same release of Stoker in agent and zygote.",
        )
    checkpoint = start.checkpoint
    template = prepared.template
    if template is None:
        task = model_task(start.function.task, Path(checkpoint.files_dir))
        key = replace(template_key(start.function, checkpoint.digest), task=task)
        template = ModelTemplate(key, checkpoint)
    pool, progress_descriptor, *adapter_progress = descriptors
    progress = None if checkpoint.resident else Progress.open(progress_descriptor)
    adapter = None
    if start.adapter is not None:
        ahead = prepared.adapter or AdapterTemplate(start.adapter)
        adapter = Adapter(ahead, start.adapter.chunks, pool, Progress.open(adapter_progress[0]))
    handler, arrival = template.start(pool, checkpoint.chunks, progress, on_lost, adapter)
    source = f"/function/{start.function.key}"
    answering = EventHandler(handler, as_prompt, source=source, only_events=True)
    made = Ready(guarded(limited(answering, os.environ)), time.monotonic())
    if start.function.task == "custom":
        name = start.function.name
        made = _coded(start, prepared, ContextModel(handler, name, chats=template.chats))
    if progress is None or arrival is None:
        return made
    return replace(
        made,
        bytes_at=arrival.ended,
        # The small files came first, from where the weights came from.
        fetch_seconds=lambda: (
            progress.fetch_seconds and progress.fetch_seconds + checkpoint.open_seconds
        ),
    )


def _coded(start: WorkerStart, prepared: Prepared, model: ContextModel | None) -> Ready:
    """The function's own code, which may call its model."""
    code = prepared.code or import_code(start)
    made = code(start.instance_id, model)
    return replace(made, handler=guarded(made.handler), at=time.monotonic())


def import_code(start: WorkerStart) -> Code:
    """The function's own code, imported; StokerError when it cannot be."""
    function = start.function
    if start.code_dir is None:
        raise StartFailed(
            f"Expected code for the function {function.key}, found none.",
            "Build and deploy it with faas-cli up, or give it a stoker/model.",
        )
    code_dir = Path(start.code_dir)
    kind = kind_in(code_dir, function.annotations)
    # A probe takes no turn from a call.
    probes = health_probe(function.annotations), ready_probe(function.annotations)
    concurrency = function.scaling.concurrency + sum(probe is not None for probe in probes)
    if kind == "knative":
        made = knative.load(code_dir)
        handler = EventHandler(made, as_sent, only_events=True)
        called = limited(handler if made.takes_events else made, os.environ)
        return lambda *_: Ready(called, start=made.start, stop=made.stop)
    if kind == "functions-framework":
        framed = limited(functions_framework.load(code_dir, concurrency), os.environ)
        return lambda *_: Ready(framed)
    if kind == "process":
        if not function.env_process:
            raise StartFailed(
                f"Expected handler.py, main.py or func.py in the code of {function.key}, or an "
                f"fprocess; found neither, but {listing(code_dir)}.",
                "Add one of these files, or set fprocess.",
            )
        program = function.env_process.split()
        return lambda *_: Ready(EventHandler(ProcessHandler(program, code_dir, os.environ)))
    handle = load_handle(code_dir)

    def ready(instance_id: str, model: ContextModel | None) -> Ready:
        environment = dict(function.environment)
        context = Context(instance_id, function.name, function.namespace, environment, model)
        answering = EventHandler(FunctionHandler(handle, context, concurrency))
        made = limited(answering, os.environ)
        return Ready(made, start=None if model is None else model.attach)

    return ready
