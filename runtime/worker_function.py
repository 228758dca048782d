"""Makes a worker's function callable: a model around the pool's bytes, or the user's code.

What depends on a checkpoint's small files alone (tokenizer and skeleton, 110 ms for a small
model) is a `Prepared`: a zygote may hold it ready for its next fork.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers.modeling_utils import PreTrainedModel

from stoker.native import Mapping, Progress
from stoker.placement.errors import StartFailed
from stoker.placement.function_code import kind_of_code, stated_kind
from stoker.placement.records import FunctionRecord
from stoker.runtime.checkpoint.tensors import tensor_views
from stoker.runtime.engine import weights
from stoker.runtime.engine.arrival import Arrival
from stoker.runtime.engine.embedder import Embedder, read_pooling
from stoker.runtime.engine.skeleton import Skeleton, attach, build_skeleton
from stoker.runtime.engine.tokenizer import TextCodec, load_codec, read_json
from stoker.runtime.engine.transformers_engine import TransformersEngine
from stoker.runtime.handlers import functions_framework, knative
from stoker.runtime.handlers.code import listing
from stoker.runtime.handlers.http import Handler
from stoker.runtime.handlers.model import EmbeddingHandler, GenerationHandler
from stoker.runtime.handlers.openfaas import Context, FunctionHandler, load_handle
from stoker.runtime.handlers.process import ProcessHandler
from stoker.runtime.worker_http import Ready, guarded
from stoker.runtime.worker_start import WorkerStart

CONTEXT_TOKENS_DEFAULT = 8192
"""The context of a function that names none, if its model has as much."""


@dataclass(frozen=True, slots=True)
class Prepared:
    codec: TextCodec
    skeleton: Skeleton


def prepare(files_dir: Path, task: str) -> Prepared:
    """Tokenizer and skeleton of the checkpoint whose small files lie in `files_dir`."""
    codec = load_codec(files_dir)
    codec.rehearse()
    return Prepared(codec, build_skeleton(files_dir, bare=task == "embed"))


def build(
    start: WorkerStart,
    prepared: Prepared | None,
    descriptors: tuple[int, int] | None,
    on_lost: Callable[[], None],
) -> Ready:
    """The function of `start`, ready to be called; StokerError when it cannot be.

    `descriptors` are those of the pool and of the load's progress. The weights may still be on
    their way: a forward pass waits for what it needs of them. `on_lost` is called on the event
    loop when the engine has died.
    """
    if start.checkpoint is None or start.function.task == "custom":
        made = _custom(start)
        return replace(made, handler=guarded(made.handler), at=time.monotonic())
    if descriptors is None:
        raise StartFailed(
            "Expected the pool's descriptor with the checkpoint, found none.",
            "Run the same release of Stoker in agent and zygote.",
        )
    checkpoint, function = start.checkpoint, start.function
    prepared = prepared or prepare(Path(checkpoint.files_dir), function.task)
    progress = Progress.open(descriptors[1])
    memory = torch.frombuffer(
        Mapping(descriptors[0], list(checkpoint.chunks), checkpoint.byte_count), dtype=torch.uint8
    )
    places = weights.read_layout(Path(checkpoint.layout_path))
    dtype = weights.dtype_of(function.dtype)
    arrival = None if checkpoint.resident else Arrival(progress, memory.data_ptr())
    if arrival is not None and weights.is_read_when_attached(places, dtype):
        arrival.ended.result()
    model = attach(prepared.skeleton, tensor_views(memory, places), dtype)
    if arrival is not None:
        arrival.guard(model)
    handler = guarded(_handler(function, Path(checkpoint.files_dir), prepared, model, on_lost))
    if arrival is None:
        return Ready(handler, time.monotonic())
    return Ready(
        handler,
        time.monotonic(),
        arrival.ended,
        # The small files came first, from where the weights came from.
        lambda: progress.fetch_seconds and progress.fetch_seconds + checkpoint.open_seconds,
    )


def _handler(
    function: FunctionRecord,
    files_dir: Path,
    prepared: Prepared,
    model: PreTrainedModel,
    on_lost: Callable[[], None],
) -> Handler:
    context_tokens = min(
        function.max_context or CONTEXT_TOKENS_DEFAULT,
        getattr(model.config, "max_position_embeddings", CONTEXT_TOKENS_DEFAULT),
    )
    if function.task == "embed":
        settings = read_json(files_dir / "sentence_bert_config.json")
        context_tokens = min(context_tokens, settings.get("max_seq_length") or context_tokens)
        embedder = Embedder(model, read_pooling(files_dir), context_tokens)
        return EmbeddingHandler(embedder, prepared.codec)
    engine = TransformersEngine(
        model,
        end_tokens=end_tokens(files_dir, prepared.codec),
        context_tokens=context_tokens,
        concurrency=function.scaling.concurrency,
        on_lost=on_lost,
    )
    return GenerationHandler(engine, prepared.codec, function.task)


def end_tokens(files_dir: Path, codec: TextCodec) -> list[int]:
    """Every token that ends an answer, by the model's, generation's and tokenizer's settings."""
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        value = read_json(files_dir / name).get("eos_token_id")
        found.update(value if isinstance(value, list) else [value] if value is not None else [])
    if codec.end_token is not None:
        found.add(codec.end_token)
    return sorted(found)


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
