"""A model function made whole but for its weights: what a zygote keeps between two starts.

Tokenizer, model and engine refer to address space that holds nothing yet. A fork of the process
that made them maps the weights there and has a function, whatever its size:

template   codec · skeleton · engine   |.......................|   reserved, reads as zeros
instance   codec · skeleton · engine   |chunk 7|chunk 2|chunk 9|   the pool's pages

Nothing of a request or a secret is in it: it is made of the checkpoint and `Settings` alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import orjson
import torch
from transformers.modeling_utils import PreTrainedModel

from stoker.native import Mapping, Progress
from stoker.placement.records import FunctionRecord, Task
from stoker.runtime.checkpoint.adapter import attach_adapter, read_config
from stoker.runtime.checkpoint.tensors import tensor_views
from stoker.runtime.engine import kv_cache, weights
from stoker.runtime.engine.arrival import Arrival
from stoker.runtime.engine.embedder import Embedder, read_pooling
from stoker.runtime.engine.embedding_queue import EmbeddingQueue
from stoker.runtime.engine.kv_cache import PAGE_TOKENS
from stoker.runtime.engine.skeleton import attach, build_skeleton
from stoker.runtime.engine.tokenizer import TextCodec, load_codec, read_json
from stoker.runtime.engine.transformers_engine import TransformersEngine
from stoker.runtime.handlers.http import Handler
from stoker.runtime.handlers.model import EmbeddingHandler, GenerationHandler
from stoker.runtime.worker_server import rehearse
from stoker.runtime.worker_start import CheckpointStart


@dataclass(frozen=True, slots=True)
class TemplateKey:
    """All that a template is made of: functions that agree in it share one."""

    digest: str
    task: Task
    dtype: str
    max_context: int | None
    concurrency: int


def template_key(function: FunctionRecord, digest: str) -> TemplateKey:
    return TemplateKey(
        digest,
        function.task,
        function.dtype,
        function.max_context,
        function.scaling.concurrency,
    )


class AdapterTemplate:
    """A LoRA adapter around address space that holds nothing yet; CheckpointError if it is none."""

    def __init__(self, checkpoint: CheckpointStart) -> None:
        self._uri = checkpoint.uri
        self._config = read_config(Path(checkpoint.files_dir), checkpoint.uri)
        self._mapping = Mapping(checkpoint.byte_count)
        self._tensors = tensor_views(
            torch.frombuffer(self._mapping, dtype=torch.uint8),
            weights.read_layout(Path(checkpoint.layout_path)),
        )
        self._is_attached = False

    def attach_ahead(self, model: PreTrainedModel) -> None:
        """Put it beside the weights, unless it must be cast, for which its bytes are needed."""
        if all(tensor.dtype == torch.float32 for tensor in self._tensors.values()):
            self._attach(model)

    def start(self, model: PreTrainedModel, adapter: Adapter) -> None:
        """Put its bytes there as well; they are waited for."""
        self._mapping.map(adapter.pool_descriptor, adapter.chunks)
        weights.wait_for_bytes(adapter.progress, len(self._mapping))
        if not self._is_attached:
            self._attach(model)

    def _attach(self, model: PreTrainedModel) -> None:
        attach_adapter(model, self._config, self._tensors, self._uri)
        self._is_attached = True


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter in the pool, which may still be on its way there."""

    template: AdapterTemplate
    chunks: tuple[int, ...]
    pool_descriptor: int
    progress: Progress


class ModelTemplate:
    """Made in a zygote and started in its forks, or made and started in one process.

    Raises StartFailed for a checkpoint that has no such model or no such weights.
    """

    def __init__(self, key: TemplateKey, checkpoint: CheckpointStart) -> None:
        self._key = key
        self._files_dir = Path(checkpoint.files_dir)
        # Reading a tokenizer takes as long as all the rest, and lets other threads run.
        with ThreadPoolExecutor(1, "codec") as beside:
            codec = beside.submit(_load_codec, self._files_dir)
            self._skeleton = build_skeleton(self._files_dir, bare=key.task == "embed")
            self._places = weights.read_layout(Path(checkpoint.layout_path))
            self._codec = codec.result()
        self._dtype = weights.dtype_of(key.dtype)
        self._mapping = Mapping(checkpoint.byte_count)
        # Casts and copies need the bytes, and can only be made when they are there.
        self._needs_bytes = weights.is_read_when_attached(self._places, self._dtype)
        self._runner = None if self._needs_bytes else self._make_runner()

    def start(
        self,
        pool_descriptor: int,
        chunks: tuple[int, ...],
        progress: Progress | None,
        on_lost: Callable[[], None],
        adapter: Adapter | None = None,
    ) -> tuple[Handler, Arrival | None]:
        """The function's handler around the weights in these chunks of the pool; call it once.

        With `progress`, they may still be on their way: a forward pass waits for what it needs
        of them. `on_lost` is called on the event loop when the engine has died. The adapter is
        waited for: it is small, and wraps layers that the forward pass goes through.
        """
        self._mapping.map(pool_descriptor, chunks)
        memory = self._memory()
        arrival = None if progress is None else Arrival(progress, memory.data_ptr())
        if arrival is None:
            # In one go beside the rest of the start, not page by page in the first pass.
            threading.Thread(target=self._mapping.populate, name="populate", daemon=True).start()
        elif self._needs_bytes:
            arrival.ended.result()
        self._runner = runner = self._runner or self._make_runner()
        if adapter is not None:
            adapter.template.start(self._skeleton.model, adapter)
        if arrival is not None:
            arrival.guard(self._skeleton.model)
        if isinstance(runner, TransformersEngine):
            runner.start(on_lost, None if arrival is None else arrival.ended)
        return self._handler(runner), arrival

    def rehearse(self, adapter: AdapterTemplate | None = None) -> None:
        """Sends one request through server, handler and model, over weights that read as zeros.

        In this process's threads; with the adapter beside it, with which it is to be started. The
        process may not fork afterwards.
        """
        runner = self._runner
        if runner is None:
            return
        if adapter is not None:
            adapter.attach_ahead(self._skeleton.model)
        if isinstance(runner, TransformersEngine):
            runner.start()
            # The engine keeps whole pages for prompts that begin alike; over zeros, none may be.
            prompt = [0] * (min(PAGE_TOKENS, runner.context_tokens) // 2)
            path, body = "/v1/completions", {"prompt": prompt, "max_tokens": 3, "stream": True}
        else:
            path, body = "/v1/embeddings", {"input": [[0, 0, 0]]}
        rehearse(self._handler(runner), path, orjson.dumps(body))

    @property
    def chats(self) -> bool:
        """Whether the model takes conversations."""
        return self._codec.can_chat

    def close(self) -> None:
        """Ends the engine's thread, without which a process does not end by itself."""
        if isinstance(self._runner, TransformersEngine):
            self._runner.close()

    def _handler(self, runner: Embedder | TransformersEngine) -> Handler:
        if isinstance(runner, Embedder):
            return EmbeddingHandler(EmbeddingQueue(runner), self._codec)
        return GenerationHandler(runner, self._codec, self._key.task)

    def _memory(self) -> torch.Tensor:
        if len(self._mapping) == 0:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(self._mapping, dtype=torch.uint8)

    def _make_runner(self) -> Embedder | TransformersEngine:
        views = tensor_views(self._memory(), self._places)
        model = attach(self._skeleton, views, self._dtype)
        context_tokens = self._context_tokens(model)
        if self._key.task == "embed":
            return Embedder(model, read_pooling(self._files_dir), context_tokens)
        return TransformersEngine(
            model,
            end_tokens=end_tokens(self._files_dir, self._codec),
            context_tokens=context_tokens,
            concurrency=self._key.concurrency,
        )

    def _context_tokens(self, model: PreTrainedModel) -> int:
        context_tokens = kv_cache.context_tokens(
            self._key.max_context, getattr(model.config, "max_position_embeddings", None)
        )
        if self._key.task == "embed":
            settings = read_json(self._files_dir / "sentence_bert_config.json")
            context_tokens = min(context_tokens, settings.get("max_seq_length") or context_tokens)
        return context_tokens


def _load_codec(files_dir: Path) -> TextCodec:
    codec = load_codec(files_dir)
    codec.rehearse()
    return codec


def end_tokens(files_dir: Path, codec: TextCodec) -> list[int]:
    """Every token that ends an answer, by the model's, generation's and tokenizer's settings."""
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        value = read_json(files_dir / name).get("eos_token_id")
        found.update(value if isinstance(value, list) else [value] if value is not None else [])
    if codec.end_token is not None:
        found.add(codec.end_token)
    return sorted(found)
