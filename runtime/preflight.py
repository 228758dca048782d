"""Whether a model function fits into memory, said before the first byte of its weights moves.

The weights themselves lie in the node's pool, whoever uses them; whether they fit there is the
pool's own question. Here it is about what the function's process takes for itself: the cache of
keys and values, and weights in another dtype than the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from stoker.placement.errors import MemoryShort
from stoker.placement.records import FunctionRecord
from stoker.placement.resources import parse_limits
from stoker.runtime.checkpoint.manifest import Manifest, TensorEntry, engine_tensors
from stoker.runtime.engine import kv_cache
from stoker.runtime.engine.model_task import model_task

_FLOAT_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
_STORED_AS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def check_memory(
    function: FunctionRecord, manifest: Manifest, files_dir: Path, free_bytes: int
) -> None:
    """MemoryShort when the process would need more than its limit, or than the node has free.

    A config.json that names no sizes is left to the engine. BadSpec for limits that are none.
    """
    tensors = tuple(engine_tensors(manifest))
    cast_bytes = _cast_bytes(tensors, function.dtype)
    cache_bytes, cache_tokens = 0, 0
    if model_task(function.task, files_dir) in ("chat", "completion"):
        config = _read_config(files_dir / "config.json")
        maximum = config.get("max_position_embeddings")
        context = kv_cache.context_tokens(
            function.max_context, maximum if isinstance(maximum, int) else None
        )
        blocks = kv_cache.cache_blocks(context, function.scaling.concurrency)
        element_bytes = _element_bytes(tensors, function.dtype)
        cache_bytes = kv_cache.cache_bytes(config, element_bytes, blocks) or 0
        cache_tokens = blocks * kv_cache.PAGE_TOKENS
    needed_bytes = cache_bytes + cast_bytes
    for where, allowed_bytes in (
        ("the function's own limit", parse_limits(function.limits).memory_bytes),
        ("what the node has free", max(0, free_bytes)),
    ):
        if allowed_bytes is not None and needed_bytes > allowed_bytes:
            for_cache = max(0, allowed_bytes - cast_bytes)
            fitting = cache_tokens * for_cache // cache_bytes if cache_bytes else 0
            raise MemoryShort(
                f"Expected {function.key} to need at most {allowed_bytes} bytes of memory, "
                f"{where}, found {needed_bytes}: {cache_bytes} for the keys and values of "
                f"{cache_tokens} tokens and {cast_bytes} for weights cast to {function.dtype}.",
                _remedy(function, fitting, cast_bytes, allowed_bytes),
                needed_bytes=needed_bytes,
                allowed_bytes=allowed_bytes,
                cache_bytes=cache_bytes,
                cast_bytes=cast_bytes,
            )


def _remedy(function: FunctionRecord, fitting: int, cast_bytes: int, allowed_bytes: int) -> str:
    if cast_bytes > allowed_bytes:
        return "Leave stoker/dtype out, or give the function more memory."
    return (
        f"About {fitting} tokens would fit: lower stoker/max-context or com.openfaas.scale.target "
        f"({function.scaling.concurrency}), or give the function more memory."
    )


def _cast_bytes(tensors: Iterable[TensorEntry], dtype: str) -> int:
    """Bytes of the weights that attaching copies: in the pool they have another dtype."""
    asked = _STORED_AS.get(dtype)
    if asked is None:
        return 0
    return sum(
        (t.end - t.begin) // _FLOAT_BYTES[t.dtype] * _FLOAT_BYTES[asked]
        for t in tensors
        if t.dtype in _FLOAT_BYTES and t.dtype != asked
    )


def _element_bytes(tensors: Iterable[TensorEntry], dtype: str) -> int:
    """Bytes of one number in the cache, which has the model's dtype."""
    stored = (t.dtype for t in tensors if t.dtype in _FLOAT_BYTES)
    return _FLOAT_BYTES[_STORED_AS.get(dtype) or next(stored, "F32")]


def _read_config(path: Path) -> dict[str, Any]:
    """The checkpoint's config.json; empty when it cannot be read, which its start then says."""
    try:
        config = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return config if isinstance(config, dict) else {}
