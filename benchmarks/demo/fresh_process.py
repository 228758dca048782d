"""What Stoker is compared with: transformers in a process of its own.

    python fresh_process.py FOLDER PROMPT

prints one line as soon as the first token is there. The folder is on this machine, nothing is
downloaded, and the first token is not even decoded to text.
"""

from __future__ import annotations

import json
import sys
import time

BEGAN = time.perf_counter()


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    imported = time.perf_counter()
    folder, prompt = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, local_files_only=True
    )
    loaded = time.perf_counter()
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**inputs, max_new_tokens=1, do_sample=False)
    first = time.perf_counter()
    stages = {"init": imported - BEGAN, "load": loaded - imported, "prefill": first - loaded}
    milliseconds = {stage: round(seconds * 1000, 1) for stage, seconds in stages.items()}
    print(json.dumps({"token": int(output[0, -1]), "stages_ms": milliseconds}), flush=True)


main()
