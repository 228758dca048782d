"""What a zygote imports and runs ahead of every fork, so that no child has to.

transformers imports most of itself on first use: the first batch of a fresh process takes a
second longer than the next. So a tiny random model goes the whole way once, in a thread that
ends and with one OpenMP thread: a child of a process whose forking thread used more would hang.
"""

from __future__ import annotations

import threading

import torch


def preload() -> None:
    """Imports and warms everything; the calling process is still fit for forking afterwards."""
    torch.set_num_threads(1)
    failures: list[BaseException] = []
    thread = threading.Thread(target=_rehearse, args=(failures,), name="rehearsal")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _rehearse(failures: list[BaseException]) -> None:
    try:
        from stoker.runtime.engine import skeleton, tokenizer

        skeleton.common_architectures()
        _serve_once()
        _generate_once()
        _embed_once()
        tokenizer.rehearse()
    except BaseException as error:  # noqa: BLE001 (it is raised again in the main thread)
        failures.append(error)


def _serve_once() -> None:
    from collections.abc import AsyncGenerator

    from stoker.runtime.handlers.http import Request, Response
    from stoker.runtime.worker_server import rehearse

    async def pieces() -> AsyncGenerator[bytes]:
        yield b"data: {}"

    async def handle(_request: Request) -> Response:
        return Response(200, (("content-type", "text/event-stream"),), pieces())

    rehearse(handle, "/", b"{}")


def _generate_once() -> None:
    import asyncio

    from transformers import LlamaConfig, LlamaForCausalLM

    from stoker.runtime.engine.protocol import SamplingParams
    from stoker.runtime.engine.transformers_engine import TransformersEngine

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    engine = TransformersEngine(model, end_tokens=[0], context_tokens=128, concurrency=2)
    engine.start()

    async def generate() -> None:
        params = SamplingParams(max_tokens=3, temperature=1.0, top_p=0.9)
        async for _ in engine.submit([1, 2, 3], params):
            pass

    asyncio.run(generate())
    engine.close()


def _embed_once() -> None:
    from transformers import BertConfig, BertModel

    from stoker.runtime.engine.embedder import Embedder, Pooling

    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    Embedder(BertModel(config).eval(), Pooling(), 64).embed([[1, 2, 3]])
