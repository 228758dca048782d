"""Continuous batching of transformers with nothing around it.

    python batching.py FOLDER TOKENS

reads prompts by the number of streams from standard input, and prints what each stream took.
Its sizes are those of a worker, so that the difference between the two is all that a worker and
the gateway add.
"""

from __future__ import annotations

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


@dataclass
class Answer:
    begun: float
    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


def run(manager: Any, prompts: list[list[int]], streams: int, tokens: int) -> dict[str, Any]:
    """Keep `streams` of the prompts in flight until all are answered."""
    waiting = list(enumerate(prompts))[::-1]
    answers: dict[str, Answer] = {}

    def submit() -> None:
        number, prompt = waiting.pop()
        name = f"{streams}-{number}"
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
    ordered = [answers[f"{streams}-{number}"] for number in range(len(prompts))]
    return {"seconds": time.perf_counter() - begun, "answers": ordered}


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
    requests = {
        int(streams): [
            tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            for messages in prompts
        ]
        for streams, prompts in json.loads(sys.stdin.read()).items()
    }
    run(manager, requests[1][:1], 1, 8)  # what is measured is warm
    found = {}
    for streams, prompts in requests.items():
        taken = run(manager, prompts, streams, tokens)
        answers = [told(answer, tokenizer, ends) for answer in taken["answers"]]
        found[streams] = {"seconds": taken["seconds"], "streams": answers}
    manager.stop(block=True, timeout=5.0)
    print(json.dumps(found), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
