"""Continuous batching by transformers behind our Engine interface.

transformers runs one background thread: it takes requests between two forward passes, so they
join and leave mid-flight. Sampling is our own logits processor (see sampling.py), which makes
every choice an argmax to it. Its interface changes with every minor release; nothing outside
this module and sampling.py knows it.

The sizes are always explicit. Left alone it would size its cache from the machine's memory and
touch all of it: 13.8 GB for a model of 135 M parameters.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import mmap
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.logits_process import LogitsProcessorList
from transformers.modeling_utils import PreTrainedModel

from stoker.placement.errors import InstanceLost, StartFailed
from stoker.runtime.engine.context import tokens_left
from stoker.runtime.engine.kv_cache import PAGE_TOKENS, cache_blocks
from stoker.runtime.engine.protocol import FinishReason, SamplingParams, TokenLogprobs
from stoker.runtime.engine.sampling import Sampler, SamplingProcessor

BATCH_TOKENS_MAXIMUM = 512
"""Prompt tokens in one forward pass; a longer prompt is split, and others decode in between."""
FIRST_BATCH_TOKENS_MAXIMUM = 2048
"""The same while the weights arrive: a pass takes as long as they do, however much it computes."""


class TransformersEngine:
    """Generates with `model` (on its device, in its dtype) for up to `concurrency` at a time.

    It is made without a thread and without a look at the weights, so that it may be made ahead of
    them, in a process that forks the one that calls `start`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        end_tokens: Sequence[int],
        context_tokens: int,
        concurrency: int,
    ) -> None:
        self.context_tokens = context_tokens
        self.end_tokens = list(end_tokens)
        self._on_lost: Callable[[], None] = lambda: None
        self._names = itertools.count()
        try:
            self._manager = model.init_continuous_batching(
                generation_config=GenerationConfig(do_sample=False, eos_token_id=-1),
                continuous_batching_config=ContinuousBatchingConfig(
                    page_size=PAGE_TOKENS,
                    num_blocks=cache_blocks(context_tokens, concurrency),
                    max_batch_tokens=FIRST_BATCH_TOKENS_MAXIMUM,
                    max_requests_per_batch=concurrency,
                    max_blocks_per_request=0,
                    use_async_batching=False,
                ),
            )
            processors = ContinuousBatchingLogitsProcessorList(
                LogitsProcessorList([SamplingProcessor()])
            )
            processors.tensors_required = 1
            self._manager.logit_processor = processors
            self._manager.output_router.output_queue = _Nowhere()
            with _LazyMemory():
                # Nothing to warm up without compilation: it only allocates the cache, here.
                self._manager.warmup()
            # As new as it is, the thread's first act would be to clear all of it.
            self._manager.batch_processor.reset = lambda: None
        except (ValueError, MemoryError, RuntimeError) as error:
            raise StartFailed(
                f"Expected a model and sizes that continuous batching supports, found: {error}.",
                "Deploy another model, or one with a smaller stoker/max-context.",
            ) from error

    def start(
        self, on_lost: Callable[[], None] = lambda: None, arrived: Future[float] | None = None
    ) -> None:
        """Starts the thread, unless it runs. Call it before any request.

        `on_lost` is called on the event loop if the thread dies: it then serves no more.
        `arrived` is done when the weights are there, if they are not yet.
        """
        self._on_lost = on_lost
        if arrived is None:
            self._limit_batches()
        else:
            arrived.add_done_callback(self._limit_batches)
        if not self._manager.is_running():
            self._manager.start()

    def _limit_batches(self, *_: object) -> None:
        self._manager.batch_processor.max_batch_tokens = BATCH_TOKENS_MAXIMUM

    def submit(
        self, tokens: Sequence[int], params: SamplingParams, answered: Sequence[int] = ()
    ) -> TransformersStream:
        begun = [*tokens, *answered]
        limit = min(params.max_tokens, tokens_left(len(begun), self.context_tokens))
        sampler = Sampler(params, len(tokens))
        stream = TransformersStream(self, f"r{next(self._names)}", sampler, len(begun))
        self._manager.register_result_handler(stream.request_id, stream.deliver)
        accepted = self._manager.add_request(
            begun,
            request_id=stream.request_id,
            max_new_tokens=limit,
            streaming=True,
            eos_token_id=self.end_tokens or -1,
            sampling=sampler,
        )
        if accepted is None:
            self._forget(stream.request_id)
            raise _lost("its thread has ended")
        return stream

    def close(self) -> None:
        """Ends the engine's thread; requests in flight fail."""
        self._manager.stop(block=True, timeout=5.0, hard_stop=True)

    @property
    def cache_bytes(self) -> int:
        """The size of the cache of keys and values, used or not."""
        return int(self._manager.batch_processor.cache.cache_tensor.nbytes)

    @property
    def cached_tokens(self) -> int:
        """Room in the cache that requests in flight hold, in tokens; what they share counts once.

        Blocks kept in case another prompt begins alike do not count: they go when room is short.
        """
        allocators = self._manager.batch_processor.cache.cache_allocators.values()
        return sum(
            len({block for blocks in list(allocator.block_table.values()) for block in blocks})
            * int(allocator.tokens_per_page)
            for allocator in allocators
        )

    def cancel(self, request_id: str) -> None:
        self._manager.cancel_request(request_id)
        self._forget(request_id)

    def failed(self) -> None:
        """Tells the owner when it was the engine that failed, not one request of it."""
        if self._manager.background_thread_status.can_accept_new_requests() is not None:
            self._on_lost()

    def _forget(self, request_id: str) -> None:
        self._manager.output_router.result_handlers.pop(request_id, None)


class TransformersStream:
    """Tokens of one request, handed over from the engine's thread to the event loop."""

    def __init__(
        self, engine: TransformersEngine, request_id: str, sampler: Sampler, prompt_tokens: int
    ) -> None:
        self.finish_reason: FinishReason | None = None
        self.logprobs: TokenLogprobs | None = None
        self.request_id = request_id
        self._engine = engine
        self._sampler = sampler
        self._position = prompt_tokens
        # Bounded by the request's own max_tokens.
        self._tokens: asyncio.Queue[tuple[int, TokenLogprobs | None] | InstanceLost | None]
        self._tokens = asyncio.Queue()
        self._delivered = 0
        self._open = True

    def deliver(self, output: Any) -> None:
        """One result of the engine: all tokens so far, on the event loop."""
        end_tokens = self._engine.end_tokens
        fresh = output.generated_tokens[self._delivered :]
        self._delivered += len(fresh)
        for token in fresh:
            logprobs = self._sampler.taken(self._position)
            self._position += 1
            if token not in end_tokens:
                self._tokens.put_nowait((token, logprobs))
        if not output.is_finished():
            return
        self._open = False
        if output.error is not None:
            self._tokens.put_nowait(_lost(output.error))
            self._engine.failed()
            return
        ended = bool(output.generated_tokens) and output.generated_tokens[-1] in end_tokens
        self.finish_reason = "stop" if ended else "length"
        self._tokens.put_nowait(None)

    def __aiter__(self) -> AsyncIterator[int]:
        return self

    async def __anext__(self) -> int:
        item = await self._tokens.get()
        if isinstance(item, InstanceLost):
            raise item
        if item is None:
            self._tokens.put_nowait(None)
            raise StopAsyncIteration
        token, self.logprobs = item
        return token

    def cancel(self) -> None:
        if self._open:
            self._open = False
            self._engine.cancel(self.request_id)
            self._tokens.put_nowait(None)


class _Nowhere:
    """Where results go that nobody waits for any more: of requests that were just cancelled."""

    def put(self, output: Any) -> None:
        """Forgets it; transformers would keep it, with its whole prompt, for good."""


class _LazyMemory(TorchFunctionMode):
    """Large zeros and empties become mappings that take memory where they are first used.

    torch fills a zeroed tensor at once, and transformers its attention masks although it fills
    the part of them that a pass reads before each pass: 16,000 tokens of cache cost a cold start
    0.5 s in page faults, and keep memory that few requests ever need. The pages are small, since
    a first prompt touches a little of each layer's cache.
    """

    _LARGE_BYTES = 1 << 20

    def __init__(self) -> None:
        super().__init__()
        self._mapped: set[int] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.zeros, torch.empty) and _on_cpu(kwargs):
            shape = kwargs["size"] if "size" in kwargs else args[0] if len(args) == 1 else args
            shape = (shape,) if isinstance(shape, int) else tuple(shape)
            dtype = kwargs.get("dtype") or torch.get_default_dtype()
            byte_count = math.prod(shape) * dtype.itemsize
            if byte_count >= self._LARGE_BYTES:
                memory = mmap.mmap(-1, byte_count, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                memory.madvise(mmap.MADV_NOHUGEPAGE)
                tensor = torch.frombuffer(memory, dtype=dtype).view(shape)
                self._mapped.add(tensor.data_ptr())
                return tensor
        if func == torch.Tensor.fill_ and args[0].data_ptr() in self._mapped:
            return args[0]
        return func(*args, **kwargs)


def _on_cpu(kwargs: dict[str, Any]) -> bool:
    return torch.device(kwargs.get("device") or "cpu").type == "cpu"


def _lost(why: str) -> InstanceLost:
    return InstanceLost(
        f"Expected the engine to finish the request, found that it failed: {why}.",
        "Send the request again; another instance serves it.",
    )
