"""What is measured: from where a request starts, by whom, and in which order."""

from __future__ import annotations

import random
from collections.abc import Sequence

CHAT_MODEL = "smollm2-135m-instruct"
EMBED_MODEL = "all-minilm-l6-v2"
FUNCTIONS = {"chat": CHAT_MODEL, "embed": EMBED_MODEL}

# Where a start begins, from nothing to an instance that serves; samples of each in a round.
STARTS = {"s3": 1, "ssd": 2, "zygote_only": 1, "dram": 2, "parked": 2, "warm": 5}
PEERS = ("transformers_serve", "ray_serve", "litserve", "bentoml", "llama_cpp")
SUBJECTS = ("stoker", "transformers")
STREAMS = (1, 4, 16)
# What is measured without another in between; a round takes them in a random order.
GROUPS = (
    "node",
    "s3_throttled",
    "overlap",
    "fresh_process",
    *PEERS,
    "streams",
)

# 32 tokens in the model's chat template, whose own system message would be longer.
MESSAGES = (
    {"role": "system", "content": "You are a careful teacher."},
    {"role": "user", "content": "Why is the sky blue in the daytime but red later?"},
)
PROMPT_TOKENS = 32
ANSWER_TOKENS = 8
LONG_PROMPT_TOKENS = 1024
LONG_PROMPT_WORDS = 1004
TEXT = "A model that nobody asks holds no memory, and the first who asks waits for a moment only."
STREAM_TOKENS = 64
# So often in a round the one follows the other, which goes first in turns.
STREAM_PAIRS = 3
_WORDS = ("river", "stone", "bird", "tree", "cloud", "house", "road", "field", "night", "light")
_QUESTIONS = (
    "How does a steam engine turn heat into motion?",
    "What should a beginner know about growing tomatoes?",
    "Tell a short story about a lighthouse keeper.",
    "How do bees find their way back to the hive?",
    "Explain how a bicycle stays upright.",
    "What happens to bread dough while it rises?",
    "Describe a walk through an old forest in autumn.",
    "Why do the tides follow the moon?",
    "How is paper made from wood?",
    "What makes a good teacher?",
    "Explain what a library index is for.",
    "How do birds know when to fly south?",
    "Describe how glass is blown by hand.",
    "What does a conductor of an orchestra do?",
    "Why do leaves change their colour?",
    "How does a compass point to the north?",
)


def messages_of(question: str) -> list[dict[str, str]]:
    return [dict(MESSAGES[0]), {"role": "user", "content": question}]


def long_messages(seed: int) -> list[dict[str, str]]:
    """A prompt of LONG_PROMPT_TOKENS; two seeds share nothing that a cache of prefixes keeps."""
    draw = random.Random(seed)
    return messages_of(" ".join(draw.choice(_WORDS) for _ in range(LONG_PROMPT_WORDS)))


def stream_prompts(streams: int, pair: int) -> list[list[dict[str, str]]]:
    """The requests that `streams` clients send at once, two of one client."""
    first, count = pair * streams, max(2, streams)
    numbers = range(first, first + count)
    return [messages_of(_QUESTIONS[number % len(_QUESTIONS)]) for number in numbers]


def shuffled(groups: Sequence[str], seed: int, number: int) -> list[str]:
    """The order of round `number`."""
    order = list(groups)
    random.Random(f"{seed} {number}").shuffle(order)
    return order
