"""Continuous batching of transformers with nothing around it.

    python batching.py FOLDER TOKENS

reads `{"streams": 4, "prompts": [...]}` from each line of standard input, and prints what each of
these streams took, until the input ends.
Its sizes are those of a worker, so that the difference between the two is all that a worker and
the gateway add.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from stoker.runtime.engine.kv_cache import CACHE_TOKENS_MAXIMUM
from stoker.runtime.engine.transformers_engine import BATCH_TOKENS_MAXIMUM, PAGE_TOKENS

CONCURRENCY = 16
RESULT_SECONDS_MAXIMUM = 60.0
_NUMBERS = itertools.count()


@dataclass
class Answer:
    begun: float
    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


def run(manager: Any, prompts: list[list[int]], streams: int, tokens: int) -> dict[str, Any]:
    """Keep `streams` of the prompts in flight until all are answered."""
    waiting = list(prompts)[::-1]
    answers: dict[str, Answer] = {}

    def submit() -> None:
        name, prompt = f"r{next(_NUMBERS)}", waiting.pop()
        answers[name] = Answer(time.perf_counter())
        manager.add_request(prompt, request_id=name, max_new_tokens=tokens, streaming=True)

    begun = time.perf_counter()
    for _ in range(min(streams, len(waiting))):
        submit()
    left = len(prompts)
    while left:
        output = manager.get_result(timeout=RESULT_SECONDS_MAXIMUM)
        if output is None or output.error is not None:
            sys.exit(f"No token came: {output.error if output else 'silence'}")
        answer = answers[output.request_id]
        answer.tokens = list(output.generated_tokens)
        answer.times.append(time.perf_counter())
        if output.is_finished():
            left -= 1
            if waiting:
                submit()
    return {"seconds": time.perf_counter() - begun, "answers": list(answers.values())}


def told(answer: Answer, tokenizer: Any, ends: list[int]) -> dict[str, Any]:
    words = [token for token in answer.tokens if token not in ends]
    rest = (answer.times[-1] - answer.times[0]) / max(1, len(words) - 1)
    return {
        "ttft_ms": (answer.times[0] - answer.begun) * 1000,
        "tpot_ms": rest * 1000,
        "tokens": len(words),
        "text": tokenizer.decode(words, skip_special_tokens=True),
    }


def main() -> None:
    folder, tokens = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, local_files_only=True
    ).eval()
    ends = [tokenizer.eos_token_id]
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=ends),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            num_blocks=CACHE_TOKENS_MAXIMUM // PAGE_TOKENS + 1,
            max_batch_tokens=BATCH_TOKENS_MAXIMUM,
            max_requests_per_batch=CONCURRENCY,
            max_blocks_per_request=0,
            use_async_batching=False,
        ),
    )
    manager.start()
    warm = False
    for line in sys.stdin:
        asked = json.loads(line)
        prompts = [
            tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            for messages in asked["prompts"]
        ]
        if not warm:
            run(manager, prompts[:1], 1, 8)  # what is measured is warm
            warm = True
        taken = run(manager, prompts, asked["streams"], tokens)
        answers = [told(answer, tokenizer, ends) for answer in taken["answers"]]
        print(json.dumps({"seconds": taken["seconds"], "streams": answers}), flush=True)
    manager.stop(block=True, timeout=5.0)
    os._exit(0)


if __name__ == "__main__":
    main()
