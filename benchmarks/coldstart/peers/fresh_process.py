"""Plain transformers in a process of its own, from its spawn to the first token or embedding.

    python fresh_process.py chat|embed FOLDER REQUEST

prints one line as soon as it is there. The folder is on this machine; nothing is downloaded.
"""

from __future__ import annotations

import json
import sys
import time

BEGUN = time.perf_counter()


def main() -> None:
    task, folder, request = sys.argv[1:]
    import torch
    from transformers import AutoModel, AutoTokenizer

    if task == "chat":
        from generation import Chat

        made = Chat(folder)
        loaded = time.perf_counter()
        text = next(made.stream(json.loads(request), 1))
        answer = {"text": text}
    else:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True)
        loaded = time.perf_counter()
        inputs = tokenizer(json.loads(request), return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**inputs).last_hidden_state[0].mean(dim=0)
        answer = {"vector": torch.nn.functional.normalize(hidden, dim=0).tolist()}
    ended = time.perf_counter()
    stages = {"load": (loaded - BEGUN) * 1000, "prefill": (ended - loaded) * 1000}
    print(json.dumps({**answer, "stages_ms": stages}), flush=True)


main()
