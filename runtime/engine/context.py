"""The one rule about how long a prompt and its answer may be."""

from __future__ import annotations

from stoker.placement.errors import ContextOverflow


def tokens_left(prompt_tokens: int, context_tokens: int) -> int:
    """How many tokens the answer may have (at least 1); ContextOverflow when there is no room."""
    left = context_tokens - prompt_tokens
    if left < 1:
        raise ContextOverflow(
            f"Expected a prompt of at most {context_tokens - 1} tokens, which leaves room for an "
            f"answer in the context of {context_tokens} tokens, found {prompt_tokens} tokens.",
            "Shorten the prompt, or deploy the function with a larger stoker/max-context.",
            prompt_tokens=prompt_tokens,
            context_tokens=context_tokens,
        )
    return left
