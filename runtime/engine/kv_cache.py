"""How large the engine's cache of keys and values is, from config.json alone.

The engine takes its sizes from here, so that what is checked before a load is what is used after
it. Nothing here needs torch: the node agent asks before anything is opened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import lcm
from typing import Any

PAGE_TOKENS = 64
CACHE_TOKENS_MAXIMUM = 16_384
"""Tokens cached for all requests together, unless one alone may be longer. When they do not fit
at once, the engine sets some aside and computes them again."""
CONTEXT_TOKENS_DEFAULT = 8192
"""The context of a function that names none, if its model has as much."""
# transformers hands the cache out in sectors, into which a block of each kind of layer divides,
# and keeps two of them for padding.
_SECTOR_ALIGNMENT_BYTES = 128
_PADDING_SECTORS = 2


def context_tokens(asked: int | None, model_maximum: int | None) -> int:
    """The most that a prompt and its answer may have together."""
    wanted = asked or CONTEXT_TOKENS_DEFAULT
    return min(wanted, model_maximum or wanted)


def cache_blocks(context: int, concurrency: int) -> int:
    """Blocks of PAGE_TOKENS tokens that the cache has for `concurrency` requests at once."""
    cached = max(context, min(CACHE_TOKENS_MAXIMUM, concurrency * context))
    return -(-cached // PAGE_TOKENS) + 1


def cache_bytes(config: Mapping[str, Any], element_bytes: int, blocks: int) -> int | None:
    """Bytes of a cache of `blocks` blocks; None when config.json does not name its sizes.

    Fewer heads for keys and values than for queries count as that few. Layers with a sliding
    window share the cache with the others, which rounds its size up to what both divide.
    """
    layers, heads = _size(config, "num_hidden_layers"), _size(config, "num_attention_heads")
    key_value_heads = _size(config, "num_key_value_heads") or heads
    head_dimension = _size(config, "head_dim") or _size(config, "hidden_size") // (heads or 1)
    if not (layers and key_value_heads and head_dimension):
        return None
    page_bytes = 2 * key_value_heads * head_dimension * element_bytes * PAGE_TOKENS
    kinds = config.get("layer_types")
    groups = list(Counter(kinds).values()) if isinstance(kinds, list) else [layers]
    sector_bytes = lcm(*(page_bytes * count for count in groups), _SECTOR_ALIGNMENT_BYTES)
    sectors = -(-blocks * page_bytes * layers // sector_bytes)
    return (sectors + _PADDING_SECTORS) * sector_bytes


def _size(config: Mapping[str, Any], name: str) -> int:
    """The number of that name; 0 when there is none."""
    value = config.get(name)
    return value if isinstance(value, int) and value > 0 else 0
